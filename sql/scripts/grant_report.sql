-- Who may use which identity, storage account and vault, and by which way: one row for each server and role that can
-- log in, and one for each role that may create servers of a wrapper. Reads the catalogs only. A storage or vault
-- server works while its owner has USAGE on the identity that it names: else fails_because says what is missing.
--
--   psql -d DATABASE -f grant_report.sql
\set ON_ERROR_STOP on
WITH granted AS (
    SELECT s.oid AS server, acl.grantee
    FROM pg_catalog.pg_foreign_server s, pg_catalog.aclexplode(s.srvacl) acl
    WHERE acl.privilege_type = 'USAGE'
)
SELECT s.srvname AS server,
       w.fdwname AS wrapper,
       CASE w.fdwname WHEN 'azure_storage' THEN coalesce(option.account, s.srvname)
                      WHEN 'azure_key_vault' THEN option.vault_uri
                      ELSE CASE
                          WHEN option.federated THEN coalesce(option.id || ' (workload identity)', 'workload identity')
                          WHEN option.kind = 'system-assigned' THEN 'the machine''s system-assigned identity'
                          ELSE coalesce(option.id, 'whatever identity this machine has') END END AS opens,
       r.rolname AS role,
       CASE WHEN r.rolsuper THEN 'superuser'
            WHEN s.srvowner = r.oid THEN 'owner'
            WHEN EXISTS (SELECT FROM granted WHERE granted.server = s.oid AND grantee = r.oid) THEN 'grant'
            WHEN EXISTS (SELECT FROM granted WHERE granted.server = s.oid AND grantee = 0) THEN 'grant to PUBLIC'
            ELSE 'member of ' || (
                SELECT string_agg(DISTINCT g.rolname, ', ') FROM pg_catalog.pg_roles g
                WHERE pg_catalog.pg_has_role(r.oid, g.oid, 'USAGE') AND g.oid <> r.oid
                  AND (g.oid = s.srvowner OR g.oid IN (SELECT grantee FROM granted WHERE granted.server = s.oid)))
       END AS by,
       CASE w.fdwname
           WHEN 'managed_identity' THEN
               pg_catalog.has_function_privilege(r.oid, 'managed_identity.access_token(text, name, boolean)', 'EXECUTE')
           WHEN 'azure_key_vault' THEN
               pg_catalog.has_function_privilege(r.oid, 'azure_key_vault.secret(name, text, text)', 'EXECUTE')
               AND option.allow ~ '(^|,)\s*secrets\s*(,|$)'
           ELSE false
       END AS reads_tokens_or_secrets,
       CASE WHEN w.fdwname = 'managed_identity' THEN NULL
            WHEN identity.oid IS NULL THEN format('there is no identity "%s"', option.identity)
            WHEN NOT pg_catalog.has_server_privilege(s.srvowner, identity.oid, 'USAGE') THEN
                format('its owner %s has no USAGE on identity "%s"', s.srvowner::regrole, option.identity)
       END AS fails_because
FROM pg_catalog.pg_foreign_server s
JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_foreign_data_wrapper'::pg_catalog.regclass
     AND d.objid = w.oid AND d.deptype = 'e'
JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid AND e.extname = 'managed_identity'
CROSS JOIN LATERAL (
    SELECT max(option_value) FILTER (WHERE option_name = 'account') AS account,
           max(option_value) FILTER (WHERE option_name = 'vault_uri') AS vault_uri,
           coalesce(max(option_value) FILTER (WHERE option_name = 'allow'), '') AS allow,
           max(option_value) FILTER (WHERE option_name IN ('client_id', 'object_id', 'resource_id')) AS id,
           coalesce(max(option_value) FILTER (WHERE option_name = 'kind'), s.srvtype) AS kind,
           coalesce(bool_or(option_name IN ('tenant_id', 'token_file', 'authority')
                            OR option_value IN ('workload-identity', 'workload_identity')), false)
               OR s.srvtype IS NOT DISTINCT FROM 'workload-identity' AS federated,
           coalesce(max(option_value) FILTER (WHERE option_name = 'identity'),
                    nullif(current_setting('managed_identity.default_identity', true), ''), 'machine') AS identity
    FROM pg_catalog.pg_options_to_table(s.srvoptions)) option
LEFT JOIN pg_catalog.pg_foreign_server identity ON identity.srvname = option.identity
JOIN pg_catalog.pg_roles r ON r.rolcanlogin AND pg_catalog.has_server_privilege(r.oid, s.oid, 'USAGE')
UNION ALL
SELECT '(what it creates)', w.fdwname,
       CASE w.fdwname WHEN 'managed_identity' THEN 'every identity of this machine'
                      WHEN 'azure_storage' THEN 'any account' ELSE 'any vault' END,
       r.rolname, 'USAGE on the wrapper',
       CASE w.fdwname
           WHEN 'managed_identity' THEN
               pg_catalog.has_function_privilege(r.oid, 'managed_identity.access_token(text, name, boolean)', 'EXECUTE')
           WHEN 'azure_key_vault' THEN
               pg_catalog.has_function_privilege(r.oid, 'azure_key_vault.secret(name, text, text)', 'EXECUTE')
           ELSE false
       END, NULL
FROM pg_catalog.pg_foreign_data_wrapper w
JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_foreign_data_wrapper'::pg_catalog.regclass
     AND d.objid = w.oid AND d.deptype = 'e'
JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid AND e.extname = 'managed_identity'
JOIN pg_catalog.pg_roles r ON r.rolcanlogin AND NOT r.rolsuper
     AND pg_catalog.has_foreign_data_wrapper_privilege(r.oid, w.oid, 'USAGE')
ORDER BY 2, 1, 4;
