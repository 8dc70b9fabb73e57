-- Gives roles a way into one storage account. Safe to run twice.
--
--   psql -d DATABASE -v account=sales -v roles=etl -f setup_storage.sql
--
-- The whole is stated: an option that is not given goes back to its default. Grants are only added.
--
-- Also: -v server=NAME (else the account's name), -v access=read (else read-write), -v locations='inbox/*',
-- -v identity=SERVER (a managed_identity server; else the default identity). `roles` may be a list: 'etl, report'.
\set ON_ERROR_STOP on
\if :{?account} \else \set account ''
\endif
SELECT :'account' = '' AS incomplete \gset
\if :incomplete
    \set SHOW_CONTEXT never
    DO $$ BEGIN RAISE EXCEPTION 'setup_storage.sql: say which account: -v account=...'; END $$;
\endif
\if :{?server} \else \set server :account
\endif
\if :{?roles} \else \set roles ''
\endif
\if :{?access} \else \set access 'read-write'
\endif
\if :{?locations} \else \set locations ''
\endif
\if :{?identity} \else \set identity ''
\endif
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS managed_identity;
SELECT managed_identity.configure(:'server', 'azure_storage', jsonb_strip_nulls(jsonb_build_object(
           'account', :'account', 'access', :'access',
           'locations', nullif(:'locations', ''), 'identity', nullif(:'identity', ''))),
       CASE WHEN :'roles' <> '' THEN regexp_split_to_array(btrim(:'roles'), '\s*,\s*')::name[] END) AS :"server";
