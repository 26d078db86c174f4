#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_PER_WAIT 256

static int result(int value) { return value < 0 ? -errno : value; }

int clinux_epoll_create(void) { return result(epoll_create1(EPOLL_CLOEXEC)); }

static int control(int epoll, int operation, int descriptor, uint32_t events, uint64_t key) {
    struct epoll_event event = {.events = 0, .data = {.u64 = key}};
    if (events & CLINUX_READ) event.events |= EPOLLIN;
    if (events & CLINUX_WRITE) event.events |= EPOLLOUT;
    if (events & CLINUX_READ_HANGUP) event.events |= EPOLLRDHUP;
    return result(epoll_ctl(epoll, operation, descriptor, &event));
}

int clinux_epoll_add(int epoll, int descriptor, uint32_t events, uint64_t key) {
    return control(epoll, EPOLL_CTL_ADD, descriptor, events, key);
}

int clinux_epoll_modify(int epoll, int descriptor, uint32_t events, uint64_t key) {
    return control(epoll, EPOLL_CTL_MOD, descriptor, events, key);
}

int clinux_epoll_remove(int epoll, int descriptor) {
    return result(epoll_ctl(epoll, EPOLL_CTL_DEL, descriptor, NULL));
}

int clinux_epoll_wait(int epoll, struct clinux_event *events, int capacity, int64_t nanoseconds) {
    struct epoll_event ready[EVENTS_PER_WAIT];
    struct timespec wait = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
    if (capacity > EVENTS_PER_WAIT) capacity = EVENTS_PER_WAIT;
    int count = epoll_pwait2(epoll, ready, capacity, nanoseconds < 0 ? NULL : &wait, NULL);
    if (count < 0) return -errno;
    for (int index = 0; index < count; index++) {
        uint32_t from = ready[index].events, to = 0;
        if (from & EPOLLIN) to |= CLINUX_READ;
        if (from & EPOLLOUT) to |= CLINUX_WRITE;
        if (from & EPOLLERR) to |= CLINUX_ERROR;
        if (from & EPOLLHUP) to |= CLINUX_HANGUP;
        if (from & EPOLLRDHUP) to |= CLINUX_READ_HANGUP;
        events[index].key = ready[index].data.u64;
        events[index].events = to;
    }
    return count;
}

int clinux_eventfd(void) { return result(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

void clinux_eventfd_signal(int descriptor) {
    uint64_t one = 1;
    // A full counter (EAGAIN) has woken the reader already.
    while (write(descriptor, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

void clinux_eventfd_drain(int descriptor) {
    uint64_t count;
    while (read(descriptor, &count, sizeof count) < 0 && errno == EINTR) {
    }
}

void clinux_name_thread(const char *name) {
    char shortened[16];
    snprintf(shortened, sizeof shortened, "%s", name);
    pthread_setname_np(pthread_self(), shortened);
}

int clinux_spawn_close_from(posix_spawn_file_actions_t *actions, int first) {
    return -posix_spawn_file_actions_addclosefrom_np(actions, first);
}

int clinux_accept(int listener, void *address, uint32_t *length) {
    return result(accept4(listener, address, length, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

int clinux_tcp_socket(int family) {
    return result(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

int clinux_set_option(int descriptor, int level, int option, int value) {
    return result(setsockopt(descriptor, level, option, &value, sizeof value));
}

int clinux_get_option(int descriptor, int level, int option, int *value) {
    socklen_t length = sizeof *value;
    return result(getsockopt(descriptor, level, option, value, &length));
}

int clinux_set_no_linger(int descriptor) {
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    return setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) < 0 ? -errno : 0;
}
