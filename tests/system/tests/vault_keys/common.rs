//! A world with a vault of keys, and what is said of its refusals.

use server_tests::{Session, World};

/// A world whose server `kv` allows everything.
pub fn world() -> World {
    let world = World::new();
    world.session().run(&format!(
        "CREATE SERVER kv FOREIGN DATA WRAPPER azure_key_vault OPTIONS (vault_uri '{}', identity 'keys',
             allow 'secrets,keys,wrap,unwrap,encrypt,decrypt,sign,verify')",
        world.emulator.vault_uri()
    ));
    world
}

/// The error's SQLSTATE, and its message, DETAIL and HINT in one text.
pub fn refused(session: &mut Session, sql: &str) -> (String, String) {
    let error = session.error(&format!("SELECT {sql}"));
    let said = [Some(error.message()), error.detail(), error.hint()].map(Option::unwrap_or_default);
    (error.code().code().to_owned(), said.join("|"))
}
