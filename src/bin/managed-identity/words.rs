//! The rooms' messages name the settings and options of the server. Here they are those of the command.

/// What is called otherwise here; of two that begin alike the longer stands first.
const CALLED: [(&str, &str); 32] = [
    ("managed_identity.tls_ca_file", "--ca-file"),
    ("managed_identity.imds_endpoint", "--imds-endpoint"),
    ("managed_identity.connect_timeout", "--timeout"),
    ("managed_identity.request_timeout", "--timeout"),
    ("managed_identity.authority_host", "--authority"),
    ("managed_identity.key_vault_hosts", "--vault-host"),
    ("managed_identity.cloud", "--cloud"),
    ("option source or managed_identity.source chooses", "--source chooses"),
    ("managed_identity.source", "--source"),
    ("option \"vault_uri\"", "--vault"),
    ("option \"api_version\"", "--api-version"),
    ("option \"kind\"", "--kind"),
    ("option \"source\"", "--source"),
    ("option \"authority\"", "--authority"),
    ("the server's option authority, --authority", "--authority"),
    ("the server's option authority", "--authority"),
    ("the server's option kind", "--kind"),
    ("option source", "--source"),
    ("option \"", "\""),
    ("the server's option ", ""),
    ("client_id", "--client-id"),
    ("object_id", "--object-id"),
    ("resource_id", "--resource-id"),
    ("tenant_id", "--tenant-id"),
    ("token_file", "--token-file"),
    ("the environment that PostgreSQL is started with", "the environment of this command"),
    ("the server's environment", "the environment"),
    ("the server's vault", "the vault"),
    ("The operating system user that runs PostgreSQL", "Whoever runs this command"),
    ("the operating system user of PostgreSQL", "whoever runs this command"),
    ("let PostgreSQL's operating system user", "let the user of this command"),
    ("that the server can read, or leave it empty for", "that can be read, or leave it out for"),
];

pub fn of_the_command(text: &str) -> String {
    CALLED.iter().fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
}
