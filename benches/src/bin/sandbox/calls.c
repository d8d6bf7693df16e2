/* What one call of each class costs: prints a line for each, name and nanoseconds, the best of a few rounds.
   Runs in the tree of the bench `sandbox`, in the directory of its own files. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

#define ROUNDS 7

static void check(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "%s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static int dir;
static struct sockaddr_un unix_address = { AF_UNIX, "socket" };
static struct sockaddr_in inet_address;

static void open_close(void) { int fd = open("/bench/a/b/file", O_RDONLY); check(fd >= 0, "open"); close(fd); }
static void open_at(void) { int fd = openat(dir, "b/file", O_RDONLY); check(fd >= 0, "openat"); close(fd); }
static void missing(void) { check(open("/bench/a/b/none", O_RDONLY) < 0, "no error"); }
static void create(void)
{
    int fd = open("new", O_CREAT | O_EXCL | O_WRONLY, 0644);
    check(fd >= 0, "create"); close(fd); check(!unlink("new"), "unlink");
}
static void do_stat(void) { struct stat s; check(!stat("/bench/a/b/file", &s), "stat"); }
static void do_fstat(void) { struct stat s; check(!fstat(dir, &s), "fstat"); }
static void do_access(void) { check(!access("/bench/a/b/file", R_OK), "access"); }
static void do_readlink(void) { char text[64]; check(readlink("link", text, sizeof text) > 0, "readlink"); }
static void do_mkdir(void) { check(!mkdir("d", 0755), "mkdir"); check(!rmdir("d"), "rmdir"); }
static void do_rename(void) { check(!rename("one", "two"), "rename"); check(!rename("two", "one"), "rename"); }
static void do_link(void) { check(!link("one", "three"), "link"); check(!unlink("three"), "unlink"); }
static void do_chown(void) { check(!chown("one", 0, 0), "chown"); }
static void do_chmod(void) { check(!chmod("one", 0640), "chmod"); }
static void do_utimens(void) { check(!utimensat(AT_FDCWD, "one", NULL, 0), "utimensat"); }
static void do_chdir(void) { check(!chdir("/bench/a"), "chdir"); check(!chdir("/bench"), "chdir"); }
static void do_getcwd(void) { char text[256]; check(getcwd(text, sizeof text) != NULL, "getcwd"); }
static void do_getuid(void) { syscall(SYS_getuid); }
static void do_getppid(void) { syscall(SYS_getppid); }
static void do_kill(void) { check(!kill(getpid(), 0), "kill"); }
static void read_write(void)
{
    static char page[4096];
    check(pwrite(dir, page, 1, 0) < 0, "wrote to a directory");
    static int file = -1;
    if (file < 0) file = open("data", O_CREAT | O_RDWR, 0644);
    check(pwrite(file, page, sizeof page, 0) == sizeof page && pread(file, page, sizeof page, 0) == sizeof page, "read");
}
static void do_connect(void)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    check(!connect(fd, (struct sockaddr *)&unix_address, sizeof unix_address), "connect"); close(fd);
}
static void connect_inet(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    check(!connect(fd, (struct sockaddr *)&inet_address, sizeof inet_address), "connect"); close(fd);
}
static void do_fork(void) { pid_t pid = fork(); if (!pid) _exit(0); check(waitpid(pid, NULL, 0) == pid, "fork"); }
static void spawn(const char *program)
{
    pid_t pid; int status;
    char *argv[] = { (char *)program, NULL };
    check(!posix_spawn(&pid, program, NULL, NULL, argv, environ), "spawn");
    check(waitpid(pid, &status, 0) == pid && !status, "spawned");
}
static void exec_static(void) { spawn("/bench/true-static"); }
static void exec_dynamic(void) { spawn("/bench/true"); }

static const struct { const char *name; void (*call)(void); int times; } calls[] = {
    { "open+close", open_close, 20000 }, { "openat+close", open_at, 20000 }, { "open, missing", missing, 20000 },
    { "create+close+unlink", create, 200 }, { "stat", do_stat, 20000 }, { "fstat", do_fstat, 20000 },
    { "access", do_access, 20000 }, { "readlink", do_readlink, 20000 }, { "mkdir+rmdir", do_mkdir, 100 },
    { "rename, twice", do_rename, 5000 }, { "link+unlink", do_link, 5000 }, { "chown", do_chown, 10000 },
    { "chmod", do_chmod, 10000 }, { "utimensat", do_utimens, 10000 }, { "chdir, twice", do_chdir, 10000 },
    { "getcwd", do_getcwd, 20000 }, { "getuid", do_getuid, 20000 }, { "getppid", do_getppid, 100000 },
    { "kill, self", do_kill, 20000 }, { "pread+pwrite, 4 KiB", read_write, 20000 },
    { "connect, unix", do_connect, 3000 }, { "connect, inet", connect_inet, 3000 }, { "fork+wait", do_fork, 500 },
    { "exec, static", exec_static, 200 }, { "exec, dynamic", exec_dynamic, 200 },
};

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "cpu")) {
        unsigned long x = 88172645463325252UL;
        for (unsigned long i = 0; i < 1000000000UL; i++) { x ^= x << 13; x ^= x >> 7; x ^= x << 17; }
        printf("%lu\n", x);
        return 0;
    }
    check(!chdir("/bench"), "/bench");
    mkdir("a", 0755); mkdir("a/b", 0755);
    close(open("a/b/file", O_CREAT | O_WRONLY, 0644)); close(open("one", O_CREAT | O_WRONLY, 0644));
    unlink("link"); check(!symlink("a/b/file", "link"), "symlink");
    dir = open("/bench/a", O_RDONLY | O_DIRECTORY);
    unlink("socket"); unlink("new"); unlink("two"); unlink("three");
    int listener = socket(AF_UNIX, SOCK_DGRAM, 0);
    check(!bind(listener, (struct sockaddr *)&unix_address, sizeof unix_address), "bind");
    inet_address.sin_family = AF_INET; inet_address.sin_port = htons(9); inet_address.sin_addr.s_addr = htonl(0x7f000001);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        double best = 1e18;
        for (int round = 0; round < ROUNDS; round++) {
            double begin = now();
            for (int time = 0; time < calls[i].times; time++) calls[i].call();
            double each = (now() - begin) / calls[i].times;
            if (each < best) best = each;
        }
        printf("%s\t%.0f\n", calls[i].name, best);
        fflush(stdout);
    }
    return 0;
}
