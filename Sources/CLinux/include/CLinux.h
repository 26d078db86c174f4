#ifndef PANDORA_CLINUX_H
#define PANDORA_CLINUX_H

#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>

// Kernel calls that Swift cannot make by itself: their constants are macros, their structures are packed, or glibc hides
// them behind _GNU_SOURCE, which must not be defined in a header (it changes fd_set under other C modules).
// All return what the kernel returned, or -errno.

struct clinux_event {
    uint64_t key;
    uint32_t events;
};

enum {
    CLINUX_READ = 1,
    CLINUX_WRITE = 2,
    CLINUX_ERROR = 4,
    CLINUX_HANGUP = 8,
    CLINUX_READ_HANGUP = 16,
};

/// epoll_create1(EPOLL_CLOEXEC)
int clinux_epoll_create(void);
/// epoll_ctl(2), level-triggered; `events` is a set of CLINUX_READ, CLINUX_WRITE, CLINUX_READ_HANGUP
int clinux_epoll_add(int epoll, int descriptor, uint32_t events, uint64_t key);
int clinux_epoll_modify(int epoll, int descriptor, uint32_t events, uint64_t key);
int clinux_epoll_remove(int epoll, int descriptor);
/// epoll_pwait2(2): nanoseconds < 0 waits for ever
int clinux_epoll_wait(int epoll, struct clinux_event *events, int capacity, int64_t nanoseconds);

/// eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
int clinux_eventfd(void);
void clinux_eventfd_signal(int descriptor);
void clinux_eventfd_drain(int descriptor);

/// pthread_setname_np(3) of the calling thread; longer names are cut to 15 bytes
void clinux_name_thread(const char *name);

/// posix_spawn_file_actions_addclosefrom_np(3): the program gets no descriptor from `first` on
int clinux_spawn_close_from(posix_spawn_file_actions_t *actions, int first);

/// accept4(2) with SOCK_CLOEXEC | SOCK_NONBLOCK; the peer's address goes to `address` (128 bytes)
int clinux_accept(int listener, void *address, uint32_t *length);
/// A non-blocking, close-on-exec TCP socket of this address family
int clinux_tcp_socket(int family);
int clinux_set_option(int descriptor, int level, int option, int value);
/// SO_LINGER on, of no time: close(2) resets the connection
int clinux_set_no_linger(int descriptor);
int clinux_get_option(int descriptor, int level, int option, int *value);

#endif
