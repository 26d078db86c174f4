#include "CMigrations.h"

// #embed is C23; clang has it in every mode and says so.  It keeps the binary and the files one thing
// without a build plugin, and the compiler's dependency file names them, so that an edit rebuilds.
#pragma clang diagnostic ignored "-Wc23-extensions"

static const unsigned char m0001[] = {
#embed "../../migrations/0001_create_schema.sql"
};
static const unsigned char m0002[] = {
#embed "../../migrations/0002_create_tenants.sql"
};
static const unsigned char m0003[] = {
#embed "../../migrations/0003_create_quota.sql"
};
static const unsigned char m0004[] = {
#embed "../../migrations/0004_guard_quota.sql"
};
static const unsigned char m0005[] = {
#embed "../../migrations/0005_create_log.sql"
};
static const unsigned char m0006[] = {
#embed "../../migrations/0006_create_leases.sql"
};
static const unsigned char m0007[] = {
#embed "../../migrations/0007_create_flows.sql"
};
static const unsigned char m0008[] = {
#embed "../../migrations/0008_create_administration.sql"
};
static const unsigned char m0009[] = {
#embed "../../migrations/0009_create_doctor.sql"
};
static const unsigned char m0010[] = {
#embed "../../migrations/0010_know_refused_rows.sql"
};
static const unsigned char m0011[] = {
#embed "../../migrations/0011_renew_claims.sql"
};
static const unsigned char m0012[] = {
#embed "../../migrations/0012_share_turns.sql"
};
static const unsigned char m0013[] = {
#embed "../../migrations/0013_guard_leases.sql"
};
static const unsigned char m0014[] = {
#embed "../../migrations/0014_settle_corners.sql"
};
static const unsigned char m0015[] = {
#embed "../../migrations/0015_weigh_witnesses.sql"
};
static const unsigned char m0016[] = {
#embed "../../migrations/0016_lighten_traffic.sql"
};
static const unsigned char m0017[] = {
#embed "../../migrations/0017_share_retention.sql"
};
static const unsigned char m0018[] = {
#embed "../../migrations/0018_open_beyond_the_ledger.sql"
};

struct migration {
    const char *name;
    const unsigned char *bytes;
    size_t length;
};

static const struct migration migrations[] = {
    {"0001_create_schema.sql", m0001, sizeof m0001},
    {"0002_create_tenants.sql", m0002, sizeof m0002},
    {"0003_create_quota.sql", m0003, sizeof m0003},
    {"0004_guard_quota.sql", m0004, sizeof m0004},
    {"0005_create_log.sql", m0005, sizeof m0005},
    {"0006_create_leases.sql", m0006, sizeof m0006},
    {"0007_create_flows.sql", m0007, sizeof m0007},
    {"0008_create_administration.sql", m0008, sizeof m0008},
    {"0009_create_doctor.sql", m0009, sizeof m0009},
    {"0010_know_refused_rows.sql", m0010, sizeof m0010},
    {"0011_renew_claims.sql", m0011, sizeof m0011},
    {"0012_share_turns.sql", m0012, sizeof m0012},
    {"0013_guard_leases.sql", m0013, sizeof m0013},
    {"0014_settle_corners.sql", m0014, sizeof m0014},
    {"0015_weigh_witnesses.sql", m0015, sizeof m0015},
    {"0016_lighten_traffic.sql", m0016, sizeof m0016},
    {"0017_share_retention.sql", m0017, sizeof m0017},
    {"0018_open_beyond_the_ledger.sql", m0018, sizeof m0018},
};

size_t cmigrations_count(void) { return sizeof migrations / sizeof migrations[0]; }
const char *cmigrations_name(size_t index) { return migrations[index].name; }
const unsigned char *cmigrations_bytes(size_t index) { return migrations[index].bytes; }
size_t cmigrations_length(size_t index) { return migrations[index].length; }
