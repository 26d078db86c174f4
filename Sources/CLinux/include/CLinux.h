#ifndef PANDORA_CLINUX_H
#define PANDORA_CLINUX_H
#include <sys/epoll.h>
#include <sys/eventfd.h>
#endif
