/* Holds a pod's namespaces, and is the whole content of the tests' images: ends when asked to, or at once when it has
   an argument; reaps by itself. */
#include <signal.h>
#include <unistd.h>

static void leave(int signal) { _exit(signal == SIGTERM ? 0 : 1); }

int main(int count, char **arguments) {
  (void)arguments;
  if (count > 1) return 0;
  signal(SIGTERM, leave);
  signal(SIGINT, leave);
  signal(SIGCHLD, SIG_IGN);
  for (;;) pause();
}
