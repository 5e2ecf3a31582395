/*
 * The disk's witness: readers of blocks that were there before it, and a writer that reads back what it wrote.
 *
 * disk HOW DEVICE: HOW is direct (past this kernel's page cache, so that the disk writes into the pages of this program)
 * or cached. Whoever made the disk filled it with pages that were never written (page.h); the first half stays so and is
 * read, the second is written. A reader keeps what it read for a while and checks it again before the buffer is used anew:
 * data that came too late for a copy of this machine's memory is missing there. A few times a second it says how far it is.
 * A line on stdin ends it: it checks its buffers, flushes the disk, and says how many writes the disk must show.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "page.h"

enum { BLOCK = 16, BYTES = BLOCK * PAGE, READERS = 4, BUFFERS = 64, BETWEEN_US = 5000, TICK_MS = 200 };

static struct {
	int stop;
	uint64_t reads, writes, bad; /* blocks; bad pages */
} *shared; /* among the processes below */

static void count(uint64_t *what, uint64_t more)
{
	__atomic_fetch_add(what, more, __ATOMIC_SEQ_CST);
}

static void *pages(uint64_t number)
{
	void *memory = mmap(0, number * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		puts("disk: no memory");
		exit(1);
	}
	return memory;
}

static uint64_t some(uint64_t *state, uint64_t below)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state % below;
}

/* Blocks are counted from the start of the disk. */
static void check(const uint64_t *buffer, uint64_t block, uint64_t writes)
{
	for (int i = 0; i < BLOCK; i++)
		count(&shared->bad, !is_good(buffer + i * WORDS, block * BLOCK + i, writes));
}

static void whole(ssize_t transferred)
{
	if (transferred != BYTES) {
		perror("disk");
		count(&shared->bad, BLOCK);
	}
}

static int reader(int disk, uint64_t seed, uint64_t blocks)
{
	uint64_t *buffers = pages(BUFFERS * BLOCK), holds[BUFFERS], at = 0, used = 0;

	while (!shared->stop) {
		uint64_t *buffer = buffers + at * BLOCK * WORDS;

		if (used == BUFFERS)
			check(buffer, holds[at], 0);
		holds[at] = some(&seed, blocks);
		whole(pread(disk, buffer, BYTES, holds[at] * BYTES));
		check(buffer, holds[at], 0);
		count(&shared->reads, 1);
		at = (at + 1) % BUFFERS;
		used += used < BUFFERS;
		usleep(BETWEEN_US);
	}
	for (uint64_t i = 0; i < used; i++)
		check(buffers + i * BLOCK * WORDS, holds[i], 0);
	return 0;
}

static int writer(int disk, uint64_t first, uint64_t blocks)
{
	uint64_t *buffer = pages(BLOCK), *written = calloc(blocks, sizeof(*written)), seed = 99;

	while (!shared->stop) {
		const uint64_t at = some(&seed, blocks), block = first + at;

		whole(pread(disk, buffer, BYTES, block * BYTES));
		check(buffer, block, written[at]++);
		for (int i = 0; i < BLOCK; i++)
			fill(buffer + i * WORDS, block * BLOCK + i, written[at]);
		whole(pwrite(disk, buffer, BYTES, block * BYTES));
		count(&shared->writes, 1);
		memset(buffer, 0, BYTES);
		whole(pread(disk, buffer, BYTES, block * BYTES));
		check(buffer, block, written[at]);
		usleep(BETWEEN_US);
	}
	return fdatasync(disk);
}

static void say(const char *how)
{
	printf("disk reads=%lu writes=%lu bad=%lu%s\n", shared->reads, shared->writes, shared->bad, how);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	const int direct = argc == 3 && !strcmp(argv[1], "direct") ? O_DIRECT : 0;
	const int disk = argc == 3 ? open(argv[2], O_RDWR | direct) : -1;
	const uint64_t half = disk < 0 ? 0 : lseek(disk, 0, SEEK_END) / BYTES / 2;
	struct pollfd told = {.fd = STDIN_FILENO, .events = POLLIN};

	if (!half) {
		perror("disk: it cannot be used");
		return 1;
	}
	shared = pages(1);
	for (int i = 0; i < READERS; i++)
		if (!fork())
			return reader(disk, i + 1, half);
	if (!fork())
		return writer(disk, half, half);
	while (!poll(&told, 1, TICK_MS))
		say("");
	shared->stop = 1;
	for (int status; wait(&status) > 0;)
		count(&shared->bad, status != 0);
	say(" ended");
	return 0;
}
