-- The ledger, first version. One file holds the journal and the embedded execution rows.
-- Times are RFC 3339 in UTC. Columns of JSON hold one document.

-- Which ledger this is: a pointer or a marker elsewhere names it.
CREATE TABLE ledger (
    id         TEXT NOT NULL,
    created_at TEXT NOT NULL,
    created_by TEXT NOT NULL
) STRICT;

-- The execution row that the gate decides over. `success_*` is whose success it is.
CREATE TABLE execution (
    execution_id      TEXT NOT NULL PRIMARY KEY
        CHECK (length(execution_id) BETWEEN 1 AND 128
               AND execution_id NOT GLOB '*[^A-Za-z0-9_-]*'),
    status            TEXT NOT NULL
        CHECK (status IN ('queued', 'running', 'success', 'failed',
                          'cancelled', 'skipped', 'pending_retry')),
    current_attempt   INTEGER,
    success_attempt   INTEGER,
    success_candidate TEXT,
    claim_token       TEXT,
    error             TEXT,
    created_at        TEXT NOT NULL,
    updated_at        TEXT NOT NULL,
    completed_at      TEXT
) STRICT;

CREATE TRIGGER execution_fence_never_goes_back
BEFORE UPDATE OF current_attempt ON execution
WHEN OLD.current_attempt IS NOT NULL
     AND (NEW.current_attempt IS NULL OR NEW.current_attempt < OLD.current_attempt)
BEGIN
    SELECT RAISE(ABORT, 'the current attempt of an execution never goes back');
END;

CREATE TRIGGER execution_is_kept BEFORE DELETE ON execution
BEGIN
    SELECT RAISE(ABORT, 'an execution row is never deleted');
END;

-- Where attempts run. A path that is not UTF-8 stands there as a blob.
CREATE TABLE workspace (
    workspace_id TEXT NOT NULL PRIMARY KEY,
    root         ANY NOT NULL,
    git_dir      ANY NOT NULL
) STRICT;

-- `state` is the tag of the state in `data`; `rev` counts the changes; `spec` never changes.
CREATE TABLE attempt (
    execution_id TEXT NOT NULL REFERENCES execution (execution_id),
    attempt      INTEGER NOT NULL CHECK (attempt >= 1),
    workspace_id TEXT NOT NULL REFERENCES workspace (workspace_id),
    state        TEXT NOT NULL,
    rev          INTEGER NOT NULL CHECK (rev >= 0),
    started_at   TEXT NOT NULL,
    updated_at   TEXT NOT NULL,
    settled_at   TEXT,
    owner        TEXT CHECK (owner IS NULL OR json_valid(owner)),
    data         TEXT NOT NULL CHECK (json_valid(data)),
    spec         TEXT NOT NULL CHECK (json_valid(spec)),
    outcome      TEXT CHECK (outcome IS NULL OR json_valid(outcome)),
    PRIMARY KEY (execution_id, attempt),
    CHECK ((settled_at IS NOT NULL) = (state IN ('done', 'rolled_back', 'released')))
) STRICT;

CREATE INDEX attempt_unsettled ON attempt (workspace_id) WHERE settled_at IS NULL;

-- History only grows. `attempt` is null where an execution was refused.
CREATE TABLE event (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    execution_id TEXT NOT NULL,
    attempt      INTEGER,
    at           TEXT NOT NULL,
    kind         TEXT NOT NULL,
    from_state   TEXT,
    to_state     TEXT,
    detail       TEXT NOT NULL CHECK (json_valid(detail)),
    FOREIGN KEY (execution_id, attempt) REFERENCES attempt (execution_id, attempt)
) STRICT;

CREATE INDEX event_of ON event (execution_id, attempt);

-- What may go: a row stands here only inside the db transaction that removes it.
CREATE TABLE removal (
    execution_id TEXT NOT NULL,
    attempt      INTEGER
) STRICT;

CREATE TRIGGER event_is_not_rewritten BEFORE UPDATE ON event
BEGIN
    SELECT RAISE(ABORT, 'an event is never changed');
END;

CREATE TRIGGER event_is_kept BEFORE DELETE ON event
WHEN NOT EXISTS (SELECT 1 FROM removal AS r
                 WHERE r.execution_id = OLD.execution_id AND r.attempt IS OLD.attempt)
BEGIN
    SELECT RAISE(ABORT, 'an event is never deleted but with its settled attempt');
END;

CREATE TRIGGER attempt_is_kept BEFORE DELETE ON attempt
WHEN OLD.settled_at IS NULL
     OR NOT EXISTS (SELECT 1 FROM removal AS r
                    WHERE r.execution_id = OLD.execution_id AND r.attempt = OLD.attempt)
BEGIN
    SELECT RAISE(ABORT, 'an attempt is never deleted but by gc, settled');
END;

CREATE TRIGGER attempt_facts_stay
BEFORE UPDATE OF execution_id, attempt, workspace_id, started_at, spec ON attempt
BEGIN
    SELECT RAISE(ABORT, 'the facts of an attempt never change');
END;

CREATE TRIGGER attempt_stays_settled BEFORE UPDATE OF state, settled_at ON attempt
WHEN OLD.settled_at IS NOT NULL
     AND (NEW.state <> OLD.state OR NEW.settled_at IS NOT OLD.settled_at)
BEGIN
    SELECT RAISE(ABORT, 'a settled attempt stays settled');
END;

-- Space that is already the file's own: see the module `space`.
CREATE TABLE reserve (
    id    INTEGER PRIMARY KEY,
    bytes BLOB NOT NULL
) STRICT;
