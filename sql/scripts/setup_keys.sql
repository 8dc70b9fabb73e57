-- Gives roles a way into one vault, opened by a user-assigned identity that can be used for nothing else. Safe to
-- run twice.
--
--   psql -d DATABASE -v vault_uri=https://payroll.vault.azure.net -v client_id=11111111-2222-3333-4444-555555555555 \
--        -v server=payroll -v roles=app -f setup_keys.sql
--
-- Also: -v names='mail-*' (what may be read; else all). The identity becomes server SERVER_identity. Who is to call
-- azure_key_vault.secret needs EXECUTE on it, too, which this script grants to the same roles.
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
           'vault_uri', :'vault_uri', 'identity', :'identity', 'allow', 'secrets', 'names', nullif(:'names', ''))),
       CASE WHEN :'roles' <> '' THEN regexp_split_to_array(btrim(:'roles'), '\s*,\s*')::name[] END) AS :"server";
SELECT format('GRANT EXECUTE ON FUNCTION azure_key_vault.secret(name, text, text) TO %I', role)
FROM unnest(regexp_split_to_array(btrim(:'roles'), '\s*,\s*')) role WHERE role <> ''
\gexec
