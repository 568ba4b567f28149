-- Mails that somebody is owed, and the addresses to write to. No address stands here in clear.

CREATE TABLE address (
    account    text PRIMARY KEY,
    sealed     text NOT NULL,                -- under the account's subject key
    learned_at timestamptz NOT NULL
);

CREATE TABLE mail (
    cause           text PRIMARY KEY,        -- one mail per cause, however often it is asked for
    kind            text NOT NULL CHECK (kind IN ('privacy', 'account')),
    template        text NOT NULL,
    account         text,                    -- whose address; an erasure clears it
    case_id         text,
    by_envelope     boolean NOT NULL,        -- the address is in the case's envelope
    code_sealed     text,                    -- as it came, under the ingress key of its day; gone when the mail is settled
    facts           jsonb,
    state           text NOT NULL DEFAULT 'waiting'
                    CHECK (state IN ('waiting', 'sending', 'accepted', 'refused', 'unknown')),
    reason          text,                    -- a reply code, or a word of ours; never the server's text
    attempts        int  NOT NULL DEFAULT 0, -- texts that went out, or tries that failed before
    requested_at    timestamptz NOT NULL,
    next_attempt_at timestamptz NOT NULL,
    give_up_at      timestamptz NOT NULL,
    settled_at      timestamptz,
    decided_by      text,                    -- who had it sent again, and why
    ticket          text,
    CHECK ((state IN ('accepted', 'refused', 'unknown')) = (settled_at IS NOT NULL))
);
CREATE INDEX mail_account ON mail (account) WHERE account IS NOT NULL;

CREATE TABLE envelope (
    case_id    text PRIMARY KEY,
    sealed     text NOT NULL,                -- the address, under the case's key
    created_at timestamptz NOT NULL,
    not_after  timestamptz NOT NULL
);
