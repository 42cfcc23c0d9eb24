/*
 * glibc-shim.h
 *		For other versions than Debian's: headers packaged for a newer glibc say that
 *		strlcpy and strlcat are the system's, and this system has none.
 */
#include <stddef.h>

extern size_t strlcpy(char *dst, const char *src, size_t size);
extern size_t strlcat(char *dst, const char *src, size_t size);
