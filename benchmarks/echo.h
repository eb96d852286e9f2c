/* What the TCP echo servers in C have in common: accept, and one thread with level-triggered
   epoll(7). Each defines `struct connection`, and the two functions that are declared here. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct connection;
static struct connection *new_connection(int fd);
static void handle(struct connection *c); /* it is ready */

static int epoll;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int operation, int fd, struct connection *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll, operation, fd, &event)) die("epoll_ctl");
}

static void welcome(int listener) {
    int on = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return; /* the client has closed, or there is no free descriptor */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    watch(EPOLL_CTL_ADD, fd, new_connection(fd), EPOLLIN);
}

static void serve(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    struct epoll_event events[512];
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length)) die("bind");
    if (listen(listener, SOMAXCONN)) die("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &length)) die("getsockname");
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) die("epoll");
    watch(EPOLL_CTL_ADD, listener, NULL, EPOLLIN);
    printf("listening on tcp 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(epoll, events, sizeof events / sizeof *events, -1);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c) handle(c);
            else welcome(listener);
        }
    }
}
