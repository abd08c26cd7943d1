/* Commands of an image whose libc is musl: those that tests ask most, by the name that they are
   called by, and "libc", which says what it has of it: a user's name, an address, a thread. */
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int copy(FILE *from)
{
    char data[65536];
    size_t many;

    while ((many = fread(data, 1, sizeof data, from)) > 0)
        if (fwrite(data, 1, many, stdout) != many)
            return 1;
    return ferror(from) != 0;
}

static int cat(int count, char **paths)
{
    int failed = count == 0 ? copy(stdin) : 0;

    for (int n = 0; n < count; n++) {
        FILE *opened = fopen(paths[n], "r");
        if (opened == NULL || copy(opened)) {
            fprintf(stderr, "cat: %s: %s\n", paths[n], strerror(errno));
            failed = 1;
        }
        if (opened != NULL)
            fclose(opened);
    }
    return fflush(stdout) != 0 || failed;
}

static int pause_for(const char *seconds)
{
    double wanted = atof(seconds);
    struct timespec left = {(time_t)wanted, (long)((wanted - (time_t)wanted) * 1e9)};

    while (nanosleep(&left, &left) && errno == EINTR)
        ;
    return 0;
}

static void *threaded(void *said)
{
    *(const char **)said = "thread";
    return NULL;
}

static int libc(void)
{
    struct passwd *user = getpwuid(getuid());
    struct addrinfo *found = NULL, wanted = {.ai_family = AF_INET};
    const char *said = "no thread";
    char address[64] = "none";
    pthread_t thread;

    if (getaddrinfo("localhost", NULL, &wanted, &found) == 0)
        getnameinfo(found->ai_addr, found->ai_addrlen, address, sizeof address, NULL, 0,
                    NI_NUMERICHOST);
    if (pthread_create(&thread, NULL, threaded, &said) == 0)
        pthread_join(thread, NULL);
    printf("%s %s %s\n", user == NULL ? "nobody" : user->pw_name, address, said);
    return 0;
}

int main(int count, char **words)
{
    const char *name = strrchr(words[0], '/');

    name = name == NULL ? words[0] : name + 1;
    if (strcmp(name, "cat") == 0)
        return cat(count - 1, words + 1);
    if (strcmp(name, "sleep") == 0 && count == 2)
        return pause_for(words[1]);
    if (strcmp(name, "libc") == 0)
        return libc();
    return strcmp(name, "true") != 0;
}
