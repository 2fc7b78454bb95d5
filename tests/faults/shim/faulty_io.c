// A disk and a network that fail, for tests: preloaded into picotron (LD_PRELOAD).
//
//   FAULTY_WRITE=short         every second write to a file moves half of what was asked for
//   FAULTY_WRITE=full:N        after N bytes, writes to files fail: no space left on device
//   FAULTY_FSYNC=N             the N-th fsync from the start fails: input/output error
//   FAULTY_CUT=PATH            once the file PATH-RANK exists, all TCP connections of that rank are shut
//
// Only files below a folder whose name ends in .partial count: a checkpoint that is being written.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int is_of_a_checkpoint(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return strstr(path, ".partial/") != NULL;
}

ssize_t write(int fd, const void *bytes, size_t count) {
  static ssize_t (*real)(int, const void *, size_t);
  static long calls, written;
  if (!real) real = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
  const char *mode = getenv("FAULTY_WRITE");
  if (!mode || !is_of_a_checkpoint(fd)) return real(fd, bytes, count);
  if (!strncmp(mode, "full:", 5) && (written += (long)count) > atol(mode + 5)) {
    errno = ENOSPC;
    return -1;
  }
  if (!strcmp(mode, "short") && ++calls % 2 && count > 1) count /= 2;
  return real(fd, bytes, count);
}

int fsync(int fd) {
  static int (*real)(int);
  static int calls;
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  const char *fails = getenv("FAULTY_FSYNC");
  if (fails && is_of_a_checkpoint(fd) && ++calls == atoi(fails)) {
    errno = EIO;
    return -1;
  }
  return real(fd);
}

static void *watch(void *path) {
  while (access(path, F_OK) != 0) usleep(2000);
  for (;;) {  // and whatever is opened later
    for (int fd = 3; fd < 1024; ++fd) {
      int type = 0, listens = 0;
      socklen_t length = sizeof type;
      if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_STREAM &&
          getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 && !listens)
        shutdown(fd, SHUT_RDWR);
    }
    usleep(20000);
  }
  return NULL;
}

__attribute__((constructor)) static void begin(void) {
  const char *prefix = getenv("FAULTY_CUT"), *rank = getenv("PICOTRON_RANK");
  static char path[4096];
  pthread_t thread;
  if (!prefix || !rank) return;
  snprintf(path, sizeof path, "%s-%s", prefix, rank);
  pthread_create(&thread, NULL, watch, path);
}
