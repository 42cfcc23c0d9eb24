# shellcheck shell=bash
#
# stack.sh
#		A PostgreSQL with clickpipe and a ClickHouse, in a temporary folder and
#		on free ports; what the demo and the benchmark share.  To be sourced
#		from the top folder of the sources by a bash script with "set -eu".
#
#	stack_prepare		installs what is missing, builds, installs
#	stack_start NAME	starts both servers; below $stack_dir
#	stack_stop			ends them and removes the folder; call it at exit
#
# Runs as root, and the servers then as the user postgres, or as an ordinary
# user if what is needed is installed.
#
# Environment:
#	PG_CONFIG				the PostgreSQL to use
#	CLICKPIPE_CACHE			cache of libchdb, /var/cache/clickpipe
#	CLICKPIPE_TEST_TMPDIR	where to make the temporary folder, /tmp (short:
#							sockets are in it)

stack_dir=		# the temporary folder
stack_pids=()	# the servers
stack_as=()		# how to become the user that they run as

# ----- output -----

if [ -t 1 ]; then
	bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'
else
	bold='' dim='' plain=''
fi

section() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
note() { printf '%s%s%s\n' "$dim" "$*" "$plain"; }
die()
{
	printf '%s: %s\n' "$(basename "$0")" "$*" >&2
	exit 1
}

# quietly WHAT COMMAND...: its output is shown only if it fails.
quietly()
{
	local what=$1 log rc=0
	shift
	log=$(mktemp)
	"$@" </dev/null >"$log" 2>&1 || rc=$?
	if [ "$rc" -ne 0 ]; then
		tail -n 60 "$log" >&2
		rm -f "$log"
		die "$what failed"
	fi
	rm -f "$log"
}

# ----- building -----

stack_prepare()
{
	local build so

	# What the calling make exported is not for the makes called here.
	unset MAKEFLAGS MFLAGS MAKELEVEL

	note "packages ..."
	quietly "test/tools/install-deps" test/tools/install-deps

	if [ -z "${PG_CONFIG:-}" ]; then
		# the version that install-deps installs, when there are several
		PG_CONFIG=/usr/lib/postgresql/15/bin/pg_config
		[ -x "$PG_CONFIG" ] || PG_CONFIG=pg_config
	fi
	export PG_CONFIG
	pg_bindir=$("$PG_CONFIG" --bindir) || die "no usable pg_config"
	PATH=$pg_bindir:$PATH

	# LLVM bitcode serves JIT inlining only and takes as long as all the rest
	note "clickpipe for $("$PG_CONFIG" --version) ..."
	build=(make -s PG_CONFIG="$PG_CONFIG" with_llvm=no)
	quietly "make" "${build[@]}" all
	if [ -w "$("$PG_CONFIG" --pkglibdir)" ]; then
		quietly "make install" "${build[@]}" install
	else
		for so in *.so; do
			cmp -s "$so" "$("$PG_CONFIG" --pkglibdir)/$so" ||
				die "what is installed is not this build: make install as root first"
		done
	fi

	# An ordinary user cannot fill the shared cache.
	local cache=${CLICKPIPE_CACHE:-/var/cache/clickpipe}
	if [ -z "${CLICKPIPE_CACHE:-}" ] && [ "$(id -u)" -ne 0 ] && ! [ -w "$cache" ] &&
		! ls "$cache"/chdb-*/libchdb.so >/dev/null 2>&1; then
		cache=${XDG_CACHE_HOME:-$HOME/.cache}/clickpipe
	fi
	export CLICKPIPE_CACHE=$cache
	ls "$cache"/chdb-*/libchdb.so >/dev/null 2>&1 ||
		note "libchdb, the ClickHouse engine, 566 MB unpacked: once ..."
	chdb_lib=$(test/tools/fetch-chdb 2>/dev/null | tail -n 1) || :
	if ! [ -r "$chdb_lib" ]; then
		quietly "test/tools/fetch-chdb" test/tools/fetch-chdb
		chdb_lib=$(test/tools/fetch-chdb)
	fi
	quietly "make -C test/chdb" make -s -C test/chdb
}

# ----- servers -----

# A TCP port that nobody listens on now.  Not one of those that the kernel
# gives to outgoing connections.
free_port()
{
	perl -MIO::Socket::INET -e '
		for (1 .. 100)
		{
			my $port = 20000 + int rand 12000;
			my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1",
				LocalPort => $port, Listen => 1) or next;
			print $port;
			exit 0;
		}
		exit 1'
}

# A server, in a session of its own so that Ctrl-C reaches this script alone.
# The kernel ends it should this script be killed.  All of these programs
# become the next one: $! is the server.
start_server()
{
	local signal=$1 log=$2
	shift 2
	env -i -C "$stack_dir" PATH="$PATH" HOME="$stack_dir" LANG=C.UTF-8 TZ=UTC \
		setsid "${stack_as[@]}" setpriv --pdeathsig "$signal" -- "$@" \
		</dev/null >>"$log" 2>&1 &
	stack_pids+=($!)
}

# stack_start NAME [postgresql.conf lines]
stack_start()
{
	local deadline conf=${2:-}

	stack_dir=$(mktemp -d "${CLICKPIPE_TEST_TMPDIR:-/tmp}/clickpipe-$1.XXXXXX")
	pg_user=$(id -un)
	if [ "$(id -u)" -eq 0 ]; then
		pg_user=postgres
		stack_as=(setpriv --reuid=postgres --regid=postgres --init-groups --)
		chown postgres: "$stack_dir"
	fi
	# sources may be where the user postgres cannot read
	cp test/chdb/chdb-server "$stack_dir/"
	chmod a+rx "$stack_dir/chdb-server"

	pg_port=$(free_port) || die "no free port"
	pg_host=$stack_dir
	pg_data=$stack_dir/postgres
	quietly "initdb" env -C "$stack_dir" "${stack_as[@]}" \
		"$pg_bindir/initdb" -D "$pg_data" -U "$pg_user" -A trust --no-locale -E UTF8
	cat >>"$pg_data/postgresql.conf" <<-CONF
		port = $pg_port
		listen_addresses = ''
		unix_socket_directories = '$stack_dir'
		shared_preload_libraries = 'clickpipe'
		wal_level = logical
		max_replication_slots = 10
		max_worker_processes = 32
		timezone = 'UTC'
		$conf
	CONF
	# by the socket whoever may enter the folder, which is its owner's alone
	cat >"$pg_data/pg_hba.conf" <<-HBA
		local all,replication all trust
		host all all 127.0.0.1/32 scram-sha-256
	HBA
	start_server INT "$stack_dir/postgres.log" "$pg_bindir/postgres" -D "$pg_data"
	pg_pid=$!

	ch_user=default
	ch_password=$(od -An -N9 -tx1 /dev/urandom | tr -d ' \n')
	start_server TERM "$stack_dir/clickhouse.log" "$stack_dir/chdb-server" \
		--lib "$chdb_lib" --path "$stack_dir/clickhouse" \
		--port 0 --port-file "$stack_dir/clickhouse.port" \
		--user "$ch_user" --password "$ch_password"
	ch_pid=$!

	deadline=$((SECONDS + 60))
	until "$pg_bindir/pg_isready" -q -h "$pg_host" -p "$pg_port"; do
		if ! kill -0 "$pg_pid" 2>/dev/null || [ $SECONDS -gt $deadline ]; then
			tail -n 30 "$stack_dir/postgres.log" >&2
			die "PostgreSQL does not start"
		fi
		sleep 0.1
	done
	deadline=$((SECONDS + 60))
	until [ -s "$stack_dir/clickhouse.port" ] &&
		ch_port=$(cat "$stack_dir/clickhouse.port") &&
		[ "$(curl -s --noproxy '*' "http://127.0.0.1:$ch_port/ping")" = Ok. ]; do
		if ! kill -0 "$ch_pid" 2>/dev/null || [ $SECONDS -gt $deadline ]; then
			tail -n 30 "$stack_dir/clickhouse.log" >&2
			die "ClickHouse does not start"
		fi
		sleep 0.1
	done
	ch_url=http://127.0.0.1:$ch_port/
}

# End what was started, by pid, and remove the folder.  Never fails.
stack_stop()
{
	local pid i

	for pid in "${stack_pids[@]}"; do
		# TERM would have PostgreSQL wait for its clients
		if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = postgres ]; then
			kill -INT "$pid" 2>/dev/null || :
		else
			kill -TERM "$pid" 2>/dev/null || :
		fi
	done
	for pid in "${stack_pids[@]}"; do
		for ((i = 0; i < 200; i++)); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.1
		done
		kill -KILL "$pid" 2>/dev/null || :
		wait "$pid" 2>/dev/null || :
	done
	stack_pids=()
	[ -z "$stack_dir" ] || rm -rf "$stack_dir"
	stack_dir=
}

# ----- queries -----

# pg DATABASE [psql options]: the answer as plain text.
pg()
{
	local db=$1
	shift
	"$pg_bindir/psql" -X -q -v ON_ERROR_STOP=1 -h "$pg_host" -p "$pg_port" -U "$pg_user" \
		-d "$db" "$@"
}

# ch SQL [curl options]: the answer as text; on an error says it and fails.
ch()
{
	local sql=$1 answer
	shift
	answer=$(curl -sS --noproxy '*' --fail-with-body -u "$ch_user:$ch_password" "$@" \
		--data-binary @- "$ch_url" <<<"$sql") || {
		printf '%s\n' "$answer" >&2
		return 1
	}
	[ -z "$answer" ] || printf '%s\n' "$answer"
}

# ----- comparing -----

# fingerprint_sql DATABASE TABLE: two lines, the SQL for PostgreSQL and for
# ClickHouse that give "count hash" of a table's rows.  Every row is written as
# text in one canonical form, hashed with MD5, and the first 64 bits of the
# hashes are summed, so that the order does not matter.  A field is
# "length:text", NULL is \N.  Knows the types that demo and benchmark use.
# In the query for ClickHouse stand @FROM@ for the target, and @SIGN@ for what
# a row counts.
fingerprint_sql()
{
	pg "$1" -At -v table="$2" <<-'SQL'
		WITH columns AS (
			SELECT attnum, attname,
				CASE typname
					WHEN 'bpchar' THEN format('format(''%%s'', %I)', attname)
					WHEN 'float8' THEN format('encode(float8send(%I), ''hex'')', attname)
					WHEN 'numeric' THEN format('trim_scale(%I)::text', attname)
					WHEN 'timestamp' THEN format('trunc(extract(epoch FROM %I) * 1000000)::text', attname)
					WHEN 'timestamptz' THEN format('trunc(extract(epoch FROM %I) * 1000000)::text', attname)
					ELSE format('%I::text', attname)
				END AS pg,
				CASE typname
					WHEN 'float8' THEN format('lower(leftPad(hex(reinterpretAsUInt64(`%s`)), 16, ''0''))', attname)
					WHEN 'timestamp' THEN format('toString(toUnixTimestamp64Micro(`%s`))', attname)
					WHEN 'timestamptz' THEN format('toString(toUnixTimestamp64Micro(`%s`))', attname)
					ELSE format('toString(`%s`)', attname)
				END AS ch
			FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
			WHERE attrelid = :'table'::regclass AND attnum > 0 AND NOT attisdropped
		)
		SELECT format('SELECT count(*) || '' '' || coalesce(sum((''x'' || substr(md5(c), 1, 16))::bit(64)::bigint), 0)'
			|| ' FROM (SELECT concat_ws(chr(31), %s) AS c FROM %s) q',
			string_agg(format('CASE WHEN %I IS NULL THEN ''\N'' ELSE octet_length(%s) || '':'' || %s END',
				attname, pg, pg), ', ' ORDER BY attnum), :'table'::regclass)
		FROM columns
		UNION ALL
		SELECT 'SELECT concat(toString(sum(s)), '' '', toString(sum(toInt128(s) * '
			|| 'toInt128(reinterpretAsInt64(reverse(substring(MD5(c), 1, 8)))))))'
			|| format(' FROM (SELECT arrayStringConcat([%s], char(31)) AS c, @SIGN@ AS s FROM @FROM@) FORMAT TabSeparatedRaw',
			string_agg(format('ifNull(concat(toString(length(%s)), '':'', %s), ''\\N'')', ch, ch),
				', ' ORDER BY attnum))
		FROM columns
	SQL
}

# compare DATABASE TABLE TARGET [history]: sets pg_print and ch_print; false if
# they differ.
compare()
{
	local sql from="$3 FINAL" sign='toInt64(1)'
	if [ "${4:-}" = history ]; then
		from=$3
		sign='1 - 2 * toInt64(_clickpipe_is_deleted)'
	fi
	mapfile -t sql < <(fingerprint_sql "$1" "$2")
	pg_print=$(pg "$1" -At -c "${sql[0]}") || return 2
	sql[1]=${sql[1]//@FROM@/$from}
	ch_print=$(ch "${sql[1]//@SIGN@/$sign}") || return 2
	[ "$pg_print" = "$ch_print" ]
}
