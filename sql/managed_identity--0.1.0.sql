-- What CREATE EXTENSION managed_identity runs at version 0.1.0: written by pgrx-config/release-sql.sh.

/* <begin connected objects> */
CREATE SCHEMA IF NOT EXISTS azure_key_vault;
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."encrypt_value"(
	"data_key" TEXT,
	"plaintext" bytea,
	"context" bytea DEFAULT ''::bytea
) RETURNS bytea
VOLATILE PARALLEL SAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'encrypt_value_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."data_keys"() RETURNS TABLE (
	"name" TEXT,
	"vault" name,
	"kid" TEXT,
	"generation" INT,
	"state" TEXT,
	"locked_reason" TEXT,
	"signed" bool,
	"created_at" timestamp with time zone,
	"rotated_at" timestamp with time zone,
	"last_validated_at" timestamp with time zone
)
STRICT VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'data_keys_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."lock_data_keys"(
	"vault" name DEFAULT NULL
) RETURNS INT
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'lock_data_keys_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE FUNCTION azure_key_vault.data_key_of(ciphertext bytea, OUT name text, OUT generation integer) RETURNS record VOLATILE PARALLEL SAFE LANGUAGE c AS 'MODULE_PATHNAME', 'data_key_of_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."rewrap_data_keys"(
	"vault" name DEFAULT NULL,
	"to_vault" name DEFAULT NULL,
	"to_key" TEXT DEFAULT NULL
) RETURNS INT
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'rewrap_data_keys_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE FUNCTION azure_key_vault.encrypt_text(data_key text, plaintext text, context bytea DEFAULT ''::bytea) RETURNS bytea VOLATILE PARALLEL SAFE LANGUAGE c AS 'MODULE_PATHNAME', 'encrypt_text_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."rotate_data_key"(
	"name" TEXT
) RETURNS void
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'rotate_data_key_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."revalidate_data_keys"(
	"vault" name DEFAULT NULL
) RETURNS INT
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'revalidate_data_keys_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."decrypt_text"(
	"ciphertext" bytea,
	"context" bytea DEFAULT ''::bytea
) RETURNS text
VOLATILE PARALLEL SAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'decrypt_text_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."create_data_key"(
	"name" TEXT,
	"vault" name,
	"key" TEXT
) RETURNS void
VOLATILE PARALLEL UNSAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'create_data_key_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."decrypt_value"(
	"ciphertext" bytea,
	"context" bytea DEFAULT ''::bytea
) RETURNS bytea
VOLATILE PARALLEL SAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'decrypt_value_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE FUNCTION azure_key_vault.data_keys_changed() RETURNS trigger LANGUAGE c AS 'MODULE_PATHNAME', 'data_keys_changed_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE SCHEMA IF NOT EXISTS azure_storage;
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_storage."azure_storage_validator"(
	"options" TEXT[],
	"catalog" oid
) RETURNS void
STRICT PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'azure_storage_validator_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE SCHEMA IF NOT EXISTS managed_identity;
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION managed_identity."managed_identity_validator"(
	"options" TEXT[],
	"catalog" oid
) RETURNS void
STRICT PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'managed_identity_validator_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION managed_identity."resource_aliases"() RETURNS TABLE (
	"alias" TEXT,
	"resource" TEXT,
	"description" TEXT
)
STRICT STABLE PARALLEL SAFE
LANGUAGE c
AS 'MODULE_PATHNAME', 'resource_aliases_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION managed_identity."access_token"(
	"resource" TEXT,
	"identity" name DEFAULT NULL,
	"force_refresh" bool DEFAULT false
) RETURNS text
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'access_token_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION managed_identity."diagnose"(
	"resource" TEXT DEFAULT 'storage',
	"identity" name DEFAULT NULL
) RETURNS TABLE (
	"step" TEXT,
	"status" TEXT,
	"detail" TEXT,
	"hint" TEXT
)
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'diagnose_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION managed_identity."stat_requests"() RETURNS TABLE (
	"kind" TEXT,
	"server" TEXT,
	"operation" TEXT,
	"requests" bigint,
	"retries" bigint,
	"throttled" bigint,
	"errors" bigint,
	"bytes_in" bigint,
	"bytes_out" bigint,
	"total_time_ms" double precision,
	"last_error" TEXT,
	"last_error_at" timestamp with time zone,
	"stats_reset" timestamp with time zone,
	"database" TEXT
)
STRICT VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'stat_requests_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION managed_identity."status"() RETURNS TABLE (
	"version" TEXT,
	"preloaded" bool,
	"worker_pid" INT,
	"source" TEXT,
	"roots" TEXT,
	"slots_used" INT,
	"slots_total" INT,
	"next_expiry_seconds" bigint
)
STRICT VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'status_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION managed_identity."detected_source"() RETURNS TEXT
STRICT VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'detected_source_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION managed_identity."authorization_header"(
	"resource" TEXT,
	"identity" name DEFAULT NULL
) RETURNS text
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'authorization_header_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE FUNCTION managed_identity.token_info(resource text, identity name DEFAULT NULL, OUT source text, OUT client_id text, OUT object_id text, OUT expires_at timestamptz, OUT refresh_at timestamptz, OUT claims jsonb) RETURNS record VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'token_info_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION managed_identity."stat_reset"() RETURNS void
STRICT VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'stat_reset_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION managed_identity."cached_tokens"() RETURNS TABLE (
	"identity" name,
	"kind" TEXT,
	"id" TEXT,
	"resource" TEXT,
	"source" TEXT,
	"state" TEXT,
	"expires_at" timestamp with time zone,
	"refresh_at" timestamp with time zone,
	"fetched_at" timestamp with time zone,
	"hits" bigint,
	"fetches" bigint,
	"failures" bigint,
	"last_error" TEXT,
	"last_error_at" timestamp with time zone,
	"waiting" INT
)
STRICT VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'cached_tokens_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION managed_identity."forget_tokens"(
	"resource" TEXT DEFAULT NULL,
	"identity" name DEFAULT NULL
) RETURNS INT
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'forget_tokens_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE SCHEMA IF NOT EXISTS azure_key_vault;
/* </end connected objects> */

/* <begin connected objects> */
CREATE FUNCTION azure_key_vault.key(vault name, name text, version text DEFAULT NULL, OUT kid text, OUT key_type text, OUT key_ops text[], OUT enabled boolean, OUT not_before timestamptz, OUT expires_at timestamptz, OUT created_at timestamptz, OUT updated_at timestamptz, OUT jwk jsonb) RETURNS record VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'key_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."verify"(
	"vault" name,
	"kid" TEXT,
	"digest" bytea,
	"signature" bytea,
	"algorithm" TEXT DEFAULT 'PS256'
) RETURNS bool
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'verify_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE FUNCTION azure_key_vault.wrap_key(vault name, key text, plaintext bytea, algorithm text DEFAULT 'RSA-OAEP-256', OUT kid text, OUT ciphertext bytea) RETURNS record VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'wrap_key_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."unwrap_key"(
	"vault" name,
	"kid" TEXT,
	"ciphertext" bytea,
	"algorithm" TEXT DEFAULT 'RSA-OAEP-256'
) RETURNS bytea
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'unwrap_key_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."diagnose"(
	"vault" name,
	"key" TEXT DEFAULT NULL
) RETURNS TABLE (
	"step" TEXT,
	"status" TEXT,
	"detail" TEXT,
	"hint" TEXT
)
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'diagnose_vault_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE FUNCTION azure_key_vault.encrypt(vault name, key text, plaintext bytea, algorithm text DEFAULT 'RSA-OAEP-256', OUT kid text, OUT ciphertext bytea) RETURNS record VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'encrypt_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."secret"(
	"vault" name,
	"name" TEXT,
	"version" TEXT DEFAULT NULL
) RETURNS text
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'secret_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE FUNCTION azure_key_vault.secret_properties(vault name, name text, version text DEFAULT NULL, OUT id text, OUT content_type text, OUT enabled boolean, OUT not_before timestamptz, OUT expires_at timestamptz, OUT created_at timestamptz, OUT updated_at timestamptz, OUT tags jsonb) RETURNS record VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'secret_properties_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."key_versions"(
	"vault" name,
	"name" TEXT
) RETURNS TABLE (
	"kid" TEXT,
	"enabled" bool,
	"not_before" timestamp with time zone,
	"expires_at" timestamp with time zone,
	"created_at" timestamp with time zone,
	"updated_at" timestamp with time zone
)
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'key_versions_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."decrypt"(
	"vault" name,
	"kid" TEXT,
	"ciphertext" bytea,
	"algorithm" TEXT DEFAULT 'RSA-OAEP-256'
) RETURNS bytea
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'decrypt_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE  FUNCTION azure_key_vault."azure_key_vault_validator"(
	"options" TEXT[],
	"catalog" oid
) RETURNS void
STRICT PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'azure_key_vault_validator_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
CREATE FUNCTION azure_key_vault.sign(vault name, key text, digest bytea, algorithm text DEFAULT 'PS256', OUT kid text, OUT signature bytea) RETURNS record VOLATILE PARALLEL RESTRICTED LANGUAGE c AS 'MODULE_PATHNAME', 'sign_wrapper';
/* </end connected objects> */

/* <begin connected objects> */
-- What the generated part cannot say: wrappers, the pre-made server, the view, and who may do what.

CREATE FOREIGN DATA WRAPPER managed_identity VALIDATOR managed_identity.managed_identity_validator;
COMMENT ON FOREIGN DATA WRAPPER managed_identity IS 'an identity of this machine';
CREATE FOREIGN DATA WRAPPER azure_storage VALIDATOR azure_storage.azure_storage_validator;
COMMENT ON FOREIGN DATA WRAPPER azure_storage IS 'a way into one storage account, and the identity that opens it';
CREATE FOREIGN DATA WRAPPER azure_key_vault VALIDATOR azure_key_vault.azure_key_vault_validator;
COMMENT ON FOREIGN DATA WRAPPER azure_key_vault IS 'a way into one vault, and the identity that opens it';

CREATE SERVER machine FOREIGN DATA WRAPPER managed_identity;
COMMENT ON SERVER machine IS 'whatever identity this machine has';

CREATE VIEW managed_identity.cached_tokens AS
    SELECT identity, kind, id, resource, source, state, expires_at, refresh_at, fetched_at,
           hits, fetches, failures, last_error, last_error_at, waiting
    FROM managed_identity.cached_tokens();
COMMENT ON VIEW managed_identity.cached_tokens IS
    'the token cache: rows of the identities that the current user may use, every row for pg_read_all_stats; never a token';

CREATE VIEW managed_identity.resource_aliases AS
    SELECT alias, resource, description FROM managed_identity.resource_aliases();
COMMENT ON VIEW managed_identity.resource_aliases IS
    'short names of resources in the configured cloud, for access_token and option resources';

CREATE VIEW managed_identity.status AS
    SELECT version, preloaded, worker_pid, source, roots, slots_used, slots_total, next_expiry_seconds
    FROM managed_identity.status();
COMMENT ON VIEW managed_identity.status IS 'how managed_identity is set up on this server, in one row';

CREATE VIEW managed_identity.stat_requests AS
    SELECT kind, server, operation, requests, retries, throttled, errors, bytes_in, bytes_out, total_time_ms,
           last_error, last_error_at, stats_reset, database
    FROM managed_identity.stat_requests();
COMMENT ON VIEW managed_identity.stat_requests IS
    'what was asked of Azure since stats_reset, in all databases: requests, and errors of fetches, secrets and COPYs';

-- Data keys, wrapped by a key of a vault and signed by it. Nobody has rights on the tables: the functions read and
-- write them, and check. Both are dumped: a row is signed with its database's id.
CREATE TABLE azure_key_vault.data_key_database (
    id uuid NOT NULL,
    one boolean DEFAULT true CHECK (one),
    CONSTRAINT data_key_database_pkey PRIMARY KEY (one)
);
COMMENT ON TABLE azure_key_vault.data_key_database IS 'the id that this database''s data keys are signed with';
CREATE TABLE azure_key_vault.data_key (
    id uuid CONSTRAINT data_key_pkey PRIMARY KEY,
    name text COLLATE "C" NOT NULL CHECK (name <> ''),
    generation integer NOT NULL CHECK (generation > 0),
    server name NOT NULL,
    kid text NOT NULL,
    wrapped bytea NOT NULL,
    check_value bytea NOT NULL,
    signature bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    wrapped_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT data_key_name_generation_key UNIQUE (name, generation)
);
COMMENT ON TABLE azure_key_vault.data_key IS 'wrapped data keys, a row for each generation; see view data_keys';
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON azure_key_vault.data_key
    FOR EACH STATEMENT EXECUTE FUNCTION azure_key_vault.data_keys_changed();
ALTER TABLE azure_key_vault.data_key ENABLE ALWAYS TRIGGER changed;
-- What became of data keys and the vault keys that wrap them. Its owner may delete old rows. Dumped: it is the
-- history of this database.
CREATE TABLE azure_key_vault.data_key_event (
    at timestamptz NOT NULL,
    event text NOT NULL,
    vault name,
    data_keys text[],
    kid text,
    role name,
    reason text,
    request_id text
);
COMMENT ON TABLE azure_key_vault.data_key_event IS 'what became of data keys; see view data_key_events';
-- Not dumped: what this server has seen says nothing of another one's vault.
CREATE TABLE azure_key_vault.data_key_validated (
    server name NOT NULL,
    kid text NOT NULL,
    validated_at timestamptz NOT NULL,
    CONSTRAINT data_key_validated_pkey PRIMARY KEY (server, kid)
);
COMMENT ON TABLE azure_key_vault.data_key_validated IS 'when vault keys could last be used; see view data_keys';
SELECT pg_extension_config_dump('azure_key_vault.data_key_database', '');
SELECT pg_extension_config_dump('azure_key_vault.data_key_event', '');
SELECT pg_extension_config_dump('azure_key_vault.data_key', '');

CREATE VIEW azure_key_vault.data_keys AS
    SELECT name, vault, kid, generation, state, locked_reason, signed, created_at, rotated_at, last_validated_at
    FROM azure_key_vault.data_keys();
COMMENT ON VIEW azure_key_vault.data_keys IS
    'data keys of the vault servers that the current user may use, all of them for pg_read_all_stats; never a key';

CREATE VIEW azure_key_vault.data_key_events WITH (security_barrier) AS
    SELECT e.at, e.event, e.vault, e.data_keys, e.kid, e.role, e.reason, e.request_id
    FROM azure_key_vault.data_key_event e
    WHERE pg_has_role('pg_read_all_stats', 'USAGE') OR EXISTS (
        SELECT FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
        WHERE s.srvname = e.vault AND w.fdwname = 'azure_key_vault' AND has_server_privilege(s.oid, 'USAGE'));
COMMENT ON VIEW azure_key_vault.data_key_events IS
    'what became of data keys of the vault servers that the current user may use, all of it for pg_read_all_stats';

-- USAGE on the schemas lets names be found; what can be done stands on the functions and servers.
GRANT USAGE ON SCHEMA managed_identity, azure_storage, azure_key_vault TO PUBLIC;
GRANT SELECT ON managed_identity.cached_tokens, managed_identity.resource_aliases, azure_key_vault.data_keys,
    azure_key_vault.data_key_events TO PUBLIC;

-- A token or secret in SQL's hands can go anywhere: each role that may hold one is named by GRANT, and
-- needs USAGE on the server as well.
REVOKE EXECUTE ON FUNCTION managed_identity.access_token(text, name, boolean) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION managed_identity.authorization_header(text, name) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION managed_identity.token_info(text, name) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION managed_identity.forget_tokens(text, name) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION managed_identity.diagnose(text, name) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION managed_identity.detected_source() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION managed_identity.detected_source() TO pg_monitor;
REVOKE EXECUTE ON FUNCTION azure_key_vault.secret(name, text, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION azure_key_vault.secret_properties(name, text, text) FROM PUBLIC;

-- So can what a key of a vault has done.
REVOKE EXECUTE ON FUNCTION azure_key_vault.key(name, text, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION azure_key_vault.key_versions(name, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION azure_key_vault.wrap_key(name, text, bytea, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION azure_key_vault.unwrap_key(name, text, bytea, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION azure_key_vault.encrypt(name, text, bytea, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION azure_key_vault.decrypt(name, text, bytea, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION azure_key_vault.sign(name, text, bytea, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION azure_key_vault.verify(name, text, bytea, bytea, text) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION azure_key_vault.diagnose(name, text) FROM PUBLIC;

-- What gives a plaintext away is granted by name; encrypting is not.
REVOKE EXECUTE ON FUNCTION azure_key_vault.decrypt_value(bytea, bytea), azure_key_vault.decrypt_text(bytea, bytea)
    FROM PUBLIC;

-- What tells of other roles' work is for those who watch the server.
REVOKE EXECUTE ON FUNCTION managed_identity.status(), managed_identity.stat_requests(), managed_identity.stat_reset()
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION managed_identity.status(), managed_identity.stat_requests() TO pg_monitor;
GRANT SELECT ON managed_identity.status, managed_identity.stat_requests TO pg_monitor;

-- For scripts that run twice: brings a server to what is wanted and says what that took. It runs with the
-- caller's rights, so it can do what CREATE SERVER, ALTER SERVER and GRANT let him do, and no more.
CREATE FUNCTION managed_identity.configure(server name, wrapper name, options jsonb, usage_to name[] DEFAULT NULL)
RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result text := 'unchanged';
    present record;
    changes text;
    grantees text;
BEGIN
    IF server IS NULL OR wrapper IS NULL THEN
        RAISE EXCEPTION 'the names of the server and of its wrapper must not be null' USING ERRCODE = '22004';
    END IF;
    IF wrapper NOT IN ('managed_identity', 'azure_storage', 'azure_key_vault') THEN
        RAISE EXCEPTION 'wrapper "%" is none of this extension', wrapper USING ERRCODE = '22023',
            HINT = 'They are managed_identity, azure_storage and azure_key_vault.';
    END IF;
    IF jsonb_typeof(options) <> 'object'
       OR jsonb_path_exists(options, '$.* ? (@.type() == "object" || @.type() == "array")') THEN
        RAISE EXCEPTION 'options must be a JSON object whose values are text' USING ERRCODE = '22023';
    END IF;

    SELECT s.srvoptions, w.fdwname INTO present
    FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE s.srvname = server;
    IF FOUND AND present.fdwname <> wrapper THEN
        RAISE EXCEPTION 'server "%" exists and is one of wrapper "%"', server, present.fdwname USING ERRCODE = '42710';
    END IF;
    IF NOT FOUND THEN
        EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER %I', server, wrapper);
        result := 'created';
    END IF;

    -- An option that is not wanted, or wanted as null, is dropped; the value of none is ever shown.
    SELECT string_agg(CASE WHEN new.value IS NULL THEN format('DROP %I', old.option_name)
                           WHEN old.option_name IS NULL THEN format('ADD %I %L', new.key, new.value)
                           ELSE format('SET %I %L', new.key, new.value) END, ', ' ORDER BY new.value IS NOT NULL)
    INTO changes
    FROM pg_options_to_table(present.srvoptions) old
    FULL JOIN (SELECT * FROM jsonb_each_text(coalesce(options, '{}')) WHERE value IS NOT NULL) new
        ON new.key = old.option_name
    WHERE new.value IS DISTINCT FROM old.option_value;
    IF changes IS NOT NULL THEN
        EXECUTE format('ALTER SERVER %I OPTIONS (%s)', server, changes);
        result := CASE result WHEN 'created' THEN result ELSE 'altered' END;
    END IF;

    -- Rights are only added: whoever else may use the server is for REVOKE to say.
    SELECT string_agg(format('%I', role), ', ' ORDER BY role) INTO grantees
    FROM (SELECT DISTINCT role FROM unnest(usage_to) role) wanted
    WHERE NOT EXISTS (
        SELECT FROM pg_foreign_server s, aclexplode(coalesce(s.srvacl, acldefault('S', s.srvowner))) acl
        WHERE s.srvname = server AND acl.privilege_type = 'USAGE'
          AND acl.grantee = CASE role WHEN 'public' THEN 0 ELSE to_regrole(quote_ident(role))::oid END);
    IF grantees IS NOT NULL THEN
        EXECUTE format('GRANT USAGE ON FOREIGN SERVER %I TO %s', server, grantees);
        result := CASE result WHEN 'created' THEN result ELSE 'altered' END;
    END IF;
    RETURN result;
END $$;
COMMENT ON FUNCTION managed_identity.configure(name, name, jsonb, name[]) IS
    'creates or alters a server so that it has exactly these options, and grants USAGE on it; tells created, altered or unchanged';
/* </end connected objects> */

