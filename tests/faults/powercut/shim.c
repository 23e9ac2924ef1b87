/* Preloaded: what fsync and fdatasync are given is kept, as a disk would keep it.
 *
 * Below POWERCUT_LIVE nothing reaches a disk; instead each file that is synced is copied to
 * POWERCUT_KEPT, under the identity of its inode. Of a folder the names are kept, each with the
 * identity of what it names: a file has a name after a power cut if its folder was synced since it
 * got it, and contents if it was synced itself. Links, renames and unlinks need no more than that.
 *
 * One process at a time: two that sync one file at once might keep the older copy.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t disk = PTHREAD_MUTEX_INITIALIZER;

/* The number of an inode is used again soon; with the time of its birth it is unique. */
static int identify(int folder, const char *name, int flags, char *identity, mode_t *mode) {
    struct statx found;
    if (statx(folder, name, flags, STATX_INO | STATX_BTIME | STATX_TYPE, &found)) return -1;
    sprintf(identity, "%llu.%lld.%u", (unsigned long long)found.stx_ino,
            (long long)found.stx_btime.tv_sec, found.stx_btime.tv_nsec);
    *mode = found.stx_mode;
    return 0;
}

static int keep_contents(int from, int to) {
    static char block[1 << 20];
    ssize_t size;
    for (off_t at = 0; (size = pread(from, block, sizeof block, at)) != 0; at += size)
        if (size < 0 || write(to, block, size) != size) return -1;
    return 0;
}

static int keep_names(const char *path, int to) {
    DIR *folder = opendir(path);
    if (!folder) return -1;
    for (struct dirent *entry; (entry = readdir(folder));) {
        char identity[64];
        mode_t mode;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (identify(dirfd(folder), entry->d_name, AT_SYMLINK_NOFOLLOW, identity, &mode)) continue;
        dprintf(to, "%c %s %s\n", S_ISDIR(mode) ? 'd' : 'f', identity, entry->d_name);
    }
    return closedir(folder);
}

static int keep(int fd, const char *path, const char *kept) {
    char identity[64], unfinished[PATH_MAX], final[PATH_MAX];
    mode_t mode;
    if (identify(fd, "", AT_EMPTY_PATH, identity, &mode)) return -1;
    snprintf(final, sizeof final, "%s/%s", kept, identity);
    snprintf(unfinished, sizeof unfinished, "%s/unfinished", kept);
    int to = open(unfinished, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    if (to < 0) return -1;
    int failed = S_ISDIR(mode) ? keep_names(path, to) : keep_contents(fd, to);
    return close(to) || failed || rename(unfinished, final);
}

static int sync_to(int fd, const char *name) {
    const char *live = getenv("POWERCUT_LIVE"), *kept = getenv("POWERCUT_KEPT");
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    if (!live || strncmp(path, live, strlen(live))) {
        int (*next)(int) = dlsym(RTLD_NEXT, name);
        return next(fd);
    }
    pthread_mutex_lock(&disk);
    int failed = keep(fd, path, kept);
    pthread_mutex_unlock(&disk);
    if (failed) {
        fprintf(stderr, "powercut: %s was not kept: %s\n", path, strerror(errno));
        abort();
    }
    return 0;
}

int fsync(int fd) { return sync_to(fd, "fsync"); }
int fdatasync(int fd) { return sync_to(fd, "fdatasync"); }
