// The echo server on epoll, level-triggered: the floor that the system itself sets. One buffer serves all connections;
// what a slow reader does not take is waited for with poll(), which a load that reads its replies never brings about.
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS_MAX = 1024, BUFFER_SIZE = 65536, BACKLOG = 4096 };

static char buffer[BUFFER_SIZE];

static void must(int result, const char *what) {
  if (result >= 0) return;
  perror(what);
  exit(1);
}

static int listen_on_any_port(void) {
  struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof addr;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  must(fd, "socket");
  must(bind(fd, (struct sockaddr *)&addr, size), "bind");
  must(listen(fd, BACKLOG), "listen");
  must(getsockname(fd, (struct sockaddr *)&addr, &size), "getsockname");
  printf("listening on 127.0.0.1:%d\n", ntohs(addr.sin_port));
  fflush(stdout);
  return fd;
}

static void watch(int epoll, int fd) {
  struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
  must(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

static int send_all(int fd, const char *data, ssize_t length) {
  while (length > 0) {
    ssize_t n = write(fd, data, length);
    if (n < 0 && errno != EAGAIN) return -1;
    if (n < 0) {
      struct pollfd writable = {.fd = fd, .events = POLLOUT};
      poll(&writable, 1, -1);
      continue;
    }
    data += n;
    length -= n;
  }
  return 0;
}

static void echo(int fd) {
  ssize_t n = read(fd, buffer, BUFFER_SIZE);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0 || send_all(fd, buffer, n) < 0) close(fd);
}

int main(void) {
  struct epoll_event events[EVENTS_MAX];
  int listener = listen_on_any_port();
  int epoll = epoll_create1(0);
  must(epoll, "epoll_create1");
  watch(epoll, listener);
  for (;;) {
    int count = epoll_wait(epoll, events, EVENTS_MAX, -1);
    for (int i = 0; i < count; i++) {
      if (events[i].data.fd != listener) {
        echo(events[i].data.fd);
        continue;
      }
      int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
      if (client >= 0) watch(epoll, client);
    }
  }
}
