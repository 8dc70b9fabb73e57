-- What CREATE EXTENSION managed_identity runs at version 0.1.0: written by pgrx-config/release-sql.sh.

/* <begin connected objects> */
CREATE SCHEMA IF NOT EXISTS azure_key_vault;
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
CREATE  FUNCTION azure_key_vault."azure_key_vault_validator"(
	"options" TEXT[],
	"catalog" oid
) RETURNS void
STRICT PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'azure_key_vault_validator_wrapper';
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
CREATE  FUNCTION managed_identity."authorization_header"(
	"resource" TEXT,
	"identity" name DEFAULT NULL
) RETURNS text
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'authorization_header_wrapper';
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
CREATE  FUNCTION managed_identity."managed_identity_validator"(
	"options" TEXT[],
	"catalog" oid
) RETURNS void
STRICT PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'managed_identity_validator_wrapper';
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
CREATE  FUNCTION managed_identity."forget_tokens"(
	"resource" TEXT DEFAULT NULL,
	"identity" name DEFAULT NULL
) RETURNS INT
VOLATILE PARALLEL RESTRICTED
LANGUAGE c
AS 'MODULE_PATHNAME', 'forget_tokens_wrapper';
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

-- USAGE on the schemas lets names be found; what can be done stands on the functions and servers.
GRANT USAGE ON SCHEMA managed_identity, azure_storage, azure_key_vault TO PUBLIC;
GRANT SELECT ON managed_identity.cached_tokens TO PUBLIC;

-- A token or secret in SQL's hands can go anywhere: each role that may hold one is named by GRANT, and
-- needs USAGE on the server as well.
REVOKE EXECUTE ON FUNCTION managed_identity.access_token(text, name, boolean) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION managed_identity.authorization_header(text, name) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION managed_identity.forget_tokens(text, name) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION azure_key_vault.secret(name, text, text) FROM PUBLIC;
/* </end connected objects> */

