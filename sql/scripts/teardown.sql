-- Takes servers away, with the grants on them; with -v everything=yes the extension and all its servers. Safe to run
-- twice. Blobs, vaults and roles stay as they are.
--
--   psql -d DATABASE -v servers=sales,payroll,payroll_identity -f teardown.sql
--   psql -d DATABASE -v everything=yes -f teardown.sql
\set ON_ERROR_STOP on
\if :{?servers} \else \set servers ''
\endif
\if :{?everything} \else \set everything no
\endif
SET client_min_messages = warning;
SELECT format('DROP SERVER %I CASCADE', s.srvname)
FROM pg_catalog.pg_foreign_server s
JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
WHERE s.srvname = ANY (string_to_array(:'servers', ','))
  AND w.fdwname IN ('managed_identity', 'azure_storage', 'azure_key_vault')
\gexec
\if :everything
    DROP EXTENSION IF EXISTS managed_identity CASCADE;
\endif
