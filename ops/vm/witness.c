/*
 * A virtual machine's own witness: it rewrites memory at a chosen rate, page by page, and checks every page first.
 *
 * witness MIB RATE TICK WORDS: works on MIB mebibytes and writes RATE of them a second (0: it only checks). Every TICK
 * milliseconds it says on the console how far it is. Of each page only the first WORDS of 512 are rewritten and checked: an
 * emulated processor that works on whole pages writes 100 MiB a second at most. What is moved is whole pages all the same.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "page.h"

enum { AT_ONCE = 256, AT_LEAST = 16 };

int main(int argc, char **argv)
{
	const uint64_t pages = argc == 5 ? strtoull(argv[1], 0, 10) * PER_MIB : 0;
	const double rate = argc == 5 ? strtod(argv[2], 0) * PER_MIB : 0;
	const double between = argc == 5 ? strtod(argv[3], 0) / 1000 : 0;
	uint64_t *memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint32_t *writes = calloc(pages, sizeof(*writes));
	uint64_t tick = 0, bad = 0, written = 0, checked = 0, at = 0;

	const int words = argc == 5 ? atoi(argv[4]) : 0;

	if (!pages || memory == MAP_FAILED || !writes || words < 3 || words > WORDS) {
		puts("witness: no memory, or what it is told is not right");
		return 1;
	}
	for (uint64_t page = 0; page < pages; page++)
		fill(memory + page * WORDS, page, 0);
	used = words;
	for (uint64_t page = 0; page < pages; page++)
		fill(memory + page * WORDS, page, 0);

	const double began = now();
	double next = began;
	for (;;) {
		const double time = now();
		const uint64_t due = (time - began) * rate;

		if (time >= next) {
			printf("tick=%lu bad=%lu written=%lu checked=%lu\n", tick++, bad, written, checked);
			fflush(stdout);
			next = time + between;
		}
		for (int done = 0; done < AT_ONCE && (done < AT_LEAST || written < due); done++) {
			uint64_t *page = memory + at * WORDS;

			bad += !is_good(page, at, writes[at]);
			checked++;
			if (written < due) {
				fill(page, at, ++writes[at]);
				written++;
			} else if (!is_good(page, at, writes[at])) {
				fill(page, at, writes[at]); /* counted once, not once a round */
			}
			at = at + 1 == pages ? 0 : at + 1;
		}
		if (written >= due)
			nanosleep(&(struct timespec){.tv_nsec = 1000000}, 0);
	}
}
