/*
 * A page that can be checked: its number, how often it was written, words that follow from both, and their sum at the
 * end. How often it was written is kept elsewhere too, so that an old page is found out.
 */
#include <stdint.h>
#include <time.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PER_MIB = (1 << 20) / PAGE };

/* How many of its words are used; the others are left alone. */
static int used = WORDS;

static inline void fill(uint64_t *page, uint64_t number, uint64_t writes)
{
	uint64_t word = (number << 32 | writes) * 0x9e3779b97f4a7c15u, sum = 0;

	page[0] = number;
	page[1] = writes;
	for (int i = 2; i < used - 1; i++) {
		word += 0x9e3779b97f4a7c15u;
		sum += page[i] = word ^ word >> 29;
	}
	page[used - 1] = sum + number + writes * 31;
}

static inline int is_good(const uint64_t *page, uint64_t number, uint64_t writes)
{
	uint64_t sum = 0;

	for (int i = 2; i < used - 1; i++)
		sum += page[i];
	return page[0] == number && page[1] == writes && page[used - 1] == sum + number + writes * 31;
}

static inline double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}
