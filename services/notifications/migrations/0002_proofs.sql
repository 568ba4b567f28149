-- Codes are made and judged here, mails may go to other addresses than the account's, and addresses change.

-- A code that went out with a mail, as a keyed hash that is bound to the case.
CREATE TABLE proof (
    cause          text PRIMARY KEY,         -- of the mail: one code per cause
    case_id        text NOT NULL,
    request        text NOT NULL,            -- of the requests that the case joins, the one that it was sent for
    account        text NOT NULL,            -- only its own confirmations are judged
    template       text NOT NULL,
    proves         text NOT NULL CHECK (proves IN ('account', 'other')),
    code_hash      bytea NOT NULL CHECK (length(code_hash) = 16),
    address_sealed text,                     -- the new address that proves itself, under the account's subject key
    until          timestamptz NOT NULL,
    used_at        timestamptz               -- it came back right
);
CREATE INDEX proof_case ON proof (case_id);
CREATE INDEX proof_request ON proof (request);
CREATE INDEX proof_account ON proof (account);

-- What was said of each confirmation: so that a repeat is told the same, and is no second attempt.
CREATE TABLE judgement (
    event_id  text PRIMARY KEY,
    case_id   text NOT NULL,
    verdict   text NOT NULL CHECK (verdict IN ('account', 'other', 'wrong', 'used')),
    judged_at timestamptz NOT NULL
);
CREATE INDEX judgement_wrong ON judgement (case_id) WHERE verdict = 'wrong';

-- Cases whose codes are dead, those too that are made later: a keyed hash of the case, or of it and who took it back.
CREATE TABLE ended (
    hash     bytea PRIMARY KEY CHECK (length(hash) = 16),
    ended_at timestamptz NOT NULL
);

-- An address that the law wants kept for one mail of a case, although its account may be erased by then.
CREATE TABLE kept_address (
    case_id      text PRIMARY KEY,
    sealed       text NOT NULL,              -- under the case's key
    created_at   timestamptz NOT NULL,
    not_after    timestamptz NOT NULL
);

-- Addresses that may have no account, as keyed hashes.
CREATE TABLE barred (
    hash       bytea PRIMARY KEY CHECK (length(hash) = 16),
    barred_at  timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);

ALTER TABLE address
    ADD COLUMN previous   text,              -- the one that a change replaced, for as long as codes still go there
    ADD COLUMN changed_at timestamptz,
    ADD CHECK ((previous IS NULL) = (changed_at IS NULL));

ALTER TABLE mail
    ADD COLUMN by_address     boolean NOT NULL DEFAULT false,  -- it goes to another address than the account's
    ADD COLUMN address_sealed text,          -- that address
    ADD COLUMN link_sealed    text;          -- what the mail leads to

-- Codes that others made are judged by nobody any more: their mails do not go out.
UPDATE mail SET code_sealed = NULL WHERE code_sealed IS NOT NULL;
