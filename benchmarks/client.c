/* A blocking client: the round trips that a program in C measures.

   usage: client tcp|udp PORT COUNT INTERVAL_US SIZE

   It sends a message to 127.0.0.1, receives the whole reply, and compares it; with an interval it
   then sleeps until the next message is due. A round trip is the time from before send(2) to after
   recv(2), by CLOCK_MONOTONIC. It prints p50 and p99 in nanoseconds. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    static char message[65536], reply[65536];
    int on = 1;
    if (argc != 6) {
        fprintf(stderr, "usage: client tcp|udp PORT COUNT INTERVAL_US SIZE\n");
        return 2;
    }
    int is_tcp = !strcmp(argv[1], "tcp");
    long count = atol(argv[3]), interval = atol(argv[4]) * 1000, size = atol(argv[5]);
    int64_t *times = calloc(count, sizeof *times);
    int fd = socket(AF_INET, is_tcp ? SOCK_STREAM : SOCK_DGRAM, 0);
    to.sin_port = htons(atoi(argv[2]));
    if (!times || fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect");
    if (is_tcp) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    prctl(PR_SET_TIMERSLACK, 1); /* nanosecond */
    int64_t due = now();
    for (long i = 0; i < count; i++, due += interval) {
        struct timespec moment = {due / 1000000000, due % 1000000000};
        if (interval) clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &moment, NULL);
        memset(message, 'a' + i % 26, size);
        int64_t since = now();
        if (send(fd, message, size, 0) != size) die("send");
        if (recv(fd, reply, size, MSG_WAITALL) != size) die("recv");
        times[i] = now() - since;
        if (memcmp(message, reply, size)) {
            fprintf(stderr, "client: a wrong reply came back\n");
            return 1;
        }
    }
    qsort(times, count, sizeof *times, compare);
    printf("%ld %ld\n", (long)times[(count - 1) / 2], (long)times[(count * 99 - 1) / 100]);
    return 0;
}
