# clickpipe: mirrors PostgreSQL tables into ClickHouse.
#
#   make demo      everything from nothing: servers, a pipe, live traffic
#   make test      all tests
#   make install   into the PostgreSQL that pg_config names
#   make bench     ratios to COPY, ClickHouse's postgresql() and pg_recvlogical

EXTENSION = clickpipe
MODULE_big = clickpipe
DATA = $(wildcard sql/clickpipe--*.sql)
PGFILEDESC = "clickpipe - mirror tables into ClickHouse"

OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))

REGRESS = setup options rights check verbs_tables verbs
ISOLATION = verbs ddl writers
ISOLATION_OPTS = --inputdir=test/isolation
# TAP tests that are run with another major version of PostgreSQL as well: what
# depends on the version is decoding, TOAST, partitions, slots and workers.
TAP_OTHER = 010_load 011_load_traffic 016_transactions 023_resync 050_toast_held \
	052_partitions 055_two_phase 071_alter 072_alter_crash 075_copied 076_ddl_sources

TEST_CLEAN = results output_iso regression.diffs regression.out

# Sign comparison and unused parameters are the style of PostgreSQL's own
# headers and callbacks; everything else of -Wall -Wextra holds.
PG_CFLAGS = -std=gnu11 -Wall -Wextra -Wno-sign-compare -Wno-unused-parameter \
	-Wno-missing-field-initializers -Wno-declaration-after-statement
SHLIB_LINK = -lcurl -llz4 -lzstd -lz
EXTRA_CLEAN = $(TEST_CLEAN)

PG_CONFIG ?= pg_config

# Without the development package there is nothing to include yet: "make test"
# and "make demo" install it first and call make again.
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifneq ($(wildcard $(PGXS)),)
include $(PGXS)
else
all install:
	@echo "clickpipe: $(PG_CONFIG) --pgxs names no file; install postgresql-server-dev, or set PG_CONFIG" >&2
	@exit 1
endif

.PHONY: test demo bench

test:
	@test/tools/run-tests

demo:
	@test/demo/demo

bench:
	@test/bench/bench

# for the scripts under test/tools
print-%:
	@echo '$($*)'

$(OBJS): $(wildcard src/*.h)
