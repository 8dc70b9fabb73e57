-- Takes servers away, with the grants on them; with -v everything=yes the extension and all its servers. Safe to run
-- twice. Blobs, vaults and roles stay as they are. Who could use a vault server that goes, and can use no other, loses
-- EXECUTE on the functions of schema azure_key_vault, too. A server that names an identity that goes is told, and stays.
--
--   psql -d DATABASE -v servers=sales,payroll,payroll_identity -f teardown.sql
--   psql -d DATABASE -v everything=yes -f teardown.sql
\set ON_ERROR_STOP on
\if :{?servers} \else \set servers ''
\endif
\if :{?everything} \else \set everything no
\endif
SET client_min_messages = warning;
SELECT regexp_split_to_array(btrim(:'servers'), '\s*,\s*') AS servers \gset
SELECT coalesce(array_agg(DISTINCT acl.grantee), '{}') AS readers
FROM pg_catalog.pg_foreign_server s
JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw AND w.fdwname = 'azure_key_vault'
CROSS JOIN LATERAL pg_catalog.aclexplode(s.srvacl) acl
WHERE s.srvname = ANY (:'servers'::name[]) \gset
SELECT format('DROP SERVER %I CASCADE', s.srvname)
FROM pg_catalog.pg_foreign_server s
JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
WHERE s.srvname = ANY (:'servers'::name[])
  AND w.fdwname IN ('managed_identity', 'azure_storage', 'azure_key_vault')
\gexec
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM %s', f.oid::regprocedure, coalesce(quote_ident(r.rolname), 'PUBLIC'))
FROM pg_catalog.pg_proc f
CROSS JOIN LATERAL pg_catalog.aclexplode(f.proacl) acl
LEFT JOIN pg_catalog.pg_roles r ON r.oid = acl.grantee
WHERE f.pronamespace = to_regnamespace('azure_key_vault')
  -- What everybody may call from the start stays as it is.
  AND EXISTS (SELECT FROM pg_catalog.pg_init_privs i
              WHERE i.classoid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND i.objoid = f.oid)
  AND acl.grantee = ANY (:'readers'::oid[]) AND acl.grantee <> f.proowner
  AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_foreign_server s
      JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw AND w.fdwname = 'azure_key_vault'
      WHERE pg_catalog.has_server_privilege(coalesce(r.rolname, 'public'), s.oid, 'USAGE'))
\gexec
SELECT coalesce(string_agg(format('%I', s.srvname), ', ' ORDER BY s.srvname), '') AS without_identity
FROM pg_catalog.pg_foreign_server s
CROSS JOIN LATERAL pg_catalog.pg_options_to_table(s.srvoptions) option
WHERE option.option_name = 'identity' AND option.option_value = ANY (:'servers')
  AND option.option_value NOT IN (SELECT srvname FROM pg_catalog.pg_foreign_server) \gset
SELECT :'without_identity' <> '' AS incomplete \gset
\if :incomplete
    \warn 'teardown.sql: these servers name an identity that is gone:' :without_identity
\endif
\if :everything
    DROP EXTENSION IF EXISTS managed_identity CASCADE;
\endif
