-- Gives roles a way into one vault, opened by a user-assigned identity that can be used for nothing else. Safe to
-- run twice.
--
--   psql -d DATABASE -v vault_uri=https://payroll.vault.azure.net -v client_id=11111111-2222-3333-4444-555555555555 \
--        -v server=payroll -v roles=app -f setup_keys.sql
--
-- Also: -v names='mail-*' (secrets and keys that may be used; else all), -v allow=data-keys (a list of what the server
-- allows; else secrets). The identity becomes server SERVER_identity. Who is to call a function of schema azure_key_vault
-- needs EXECUTE on it, too, which this script grants to the same roles for what the server allows.
\set ON_ERROR_STOP on
\if :{?vault_uri} \else \set vault_uri ''
\endif
\if :{?client_id} \else \set client_id ''
\endif
\if :{?server} \else \set server ''
\endif
\if :{?roles} \else \set roles ''
\endif
\if :{?names} \else \set names ''
\endif
\if :{?allow} \else \set allow secrets
\endif
SELECT '' IN (:'vault_uri', :'client_id', :'server') AS incomplete \gset
\if :incomplete
    \set SHOW_CONTEXT never
    DO $$ BEGIN
        RAISE EXCEPTION 'setup_keys.sql: say which vault, identity and server: -v vault_uri=... -v client_id=... -v server=...';
    END $$;
\endif
SELECT :'server' || '_identity' AS identity \gset
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS managed_identity;
SELECT managed_identity.configure(:'identity', 'managed_identity',
           jsonb_build_object('client_id', :'client_id', 'resources', 'key-vault')) AS :"identity";
SELECT managed_identity.configure(:'server', 'azure_key_vault', jsonb_strip_nulls(jsonb_build_object(
           'vault_uri', :'vault_uri', 'identity', :'identity', 'allow', :'allow', 'names', nullif(:'names', ''))),
       CASE WHEN :'roles' <> '' THEN regexp_split_to_array(btrim(:'roles'), '\s*,\s*')::name[] END) AS :"server";
SELECT format('GRANT EXECUTE ON FUNCTION azure_key_vault.%I TO %I', function, role)
FROM unnest(regexp_split_to_array(btrim(:'roles'), '\s*,\s*')) role,
     (VALUES ('secrets', 'secret'), ('secrets', 'secret_properties'), ('keys', 'key'), ('keys', 'key_versions'),
             ('wrap', 'wrap_key'), ('unwrap', 'unwrap_key'), ('encrypt', 'encrypt'), ('decrypt', 'decrypt'),
             ('sign', 'sign'), ('verify', 'verify'), ('data-keys', 'decrypt_value'), ('data-keys', 'decrypt_text')
     ) allowed(word, function)
WHERE role <> '' AND word = ANY (regexp_split_to_array(btrim(:'allow'), '\s*,\s*'))
\gexec
