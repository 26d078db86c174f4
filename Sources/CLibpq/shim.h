#ifndef PANDORA_CLIBPQ_H
#define PANDORA_CLIBPQ_H

#include <libpq-fe.h>

// Character constants do not reach Swift.
static const int ppq_diag_severity = PG_DIAG_SEVERITY_NONLOCALIZED;
static const int ppq_diag_sqlstate = PG_DIAG_SQLSTATE;
static const int ppq_diag_message = PG_DIAG_MESSAGE_PRIMARY;
static const int ppq_diag_detail = PG_DIAG_MESSAGE_DETAIL;
static const int ppq_diag_hint = PG_DIAG_MESSAGE_HINT;
static const int ppq_diag_constraint = PG_DIAG_CONSTRAINT_NAME;

/// Ends a unit of the pipeline. From libpq 17 on nothing is sent before the next PQflush; before it every sync is also a flush.
static inline int ppq_pipeline_sync(PGconn *connection) {
#ifdef LIBPQ_HAS_SEND_PIPELINE_SYNC
    return PQsendPipelineSync(connection);
#else
    return PQpipelineSync(connection);
#endif
}

#endif
