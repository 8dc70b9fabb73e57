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

-- USAGE on the schemas lets names be found; what can be done stands on the functions and servers.
GRANT USAGE ON SCHEMA managed_identity, azure_storage, azure_key_vault TO PUBLIC;
GRANT SELECT ON managed_identity.cached_tokens, managed_identity.resource_aliases TO PUBLIC;

-- A token or secret in SQL's hands can go anywhere: each role that may hold one is named by GRANT, and
-- needs USAGE on the server as well.
REVOKE EXECUTE ON FUNCTION managed_identity.access_token(text, name, boolean) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION managed_identity.authorization_header(text, name) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION managed_identity.token_info(text, name) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION managed_identity.forget_tokens(text, name) FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION azure_key_vault.secret(name, text, text) FROM PUBLIC;
