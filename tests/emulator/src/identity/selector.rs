//! Which of the assigned identities a request means.

use super::{Identity, IdentityKind};

/// The query parameters that choose an identity; they exclude each other.
const PARAMETERS: [&str; 4] = ["client_id", "object_id", "msi_res_id", "mi_res_id"];

/// Why no identity can be chosen: the service's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotChosen {
    NotFound,
    Several,
    TwoSelectors,
}

impl NotChosen {
    pub(super) fn description(self) -> &'static str {
        match self {
            Self::NotFound => "Identity not found",
            Self::Several => {
                "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"
            }
            Self::TwoSelectors => "Only one of client_id, object_id and msi_res_id may be specified",
        }
    }
}

/// The chosen identity, and the parameter that chose it.
pub(super) fn choose<'a>(
    assigned: &'a [Identity],
    query: &[(String, String)],
) -> Result<(&'a Identity, Option<&'static str>), NotChosen> {
    let mut selectors = PARAMETERS.into_iter().filter_map(|parameter| {
        let given = query.iter().find(|(name, _)| name == parameter)?;
        Some((parameter, given.1.as_str()))
    });
    let Some((parameter, id)) = selectors.next() else {
        return Ok((default(assigned)?, None));
    };
    if selectors.next().is_some() {
        return Err(NotChosen::TwoSelectors);
    }
    let of = |identity: &'a Identity| match parameter {
        "client_id" => &identity.client_id,
        "object_id" => &identity.object_id,
        _ => &identity.resource_id,
    };
    // Azure's ids do not distinguish case.
    let found = assigned.iter().find(|identity| of(identity).eq_ignore_ascii_case(id));
    Ok((found.ok_or(NotChosen::NotFound)?, Some(parameter)))
}

fn default(assigned: &[Identity]) -> Result<&Identity, NotChosen> {
    let system = |identity: &&Identity| identity.kind == IdentityKind::SystemAssigned;
    match (assigned.iter().find(system), assigned) {
        (Some(system), _) => Ok(system),
        (None, [only]) => Ok(only),
        (None, []) => Err(NotChosen::NotFound),
        (None, _) => Err(NotChosen::Several),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn none_asked_for_is_the_system_or_the_only_one() {
        let (system, a, b) = (Identity::system(), Identity::user("a"), Identity::user("b"));
        let all = [a.clone(), system.clone(), b.clone()];
        assert_eq!(choose(&all, &[]).unwrap(), (&system, None));
        assert_eq!(choose(&all[..1], &[]).unwrap(), (&a, None));
        let two = [a, b];
        assert_eq!(choose(&two, &[]), Err(NotChosen::Several));
        assert_eq!(choose(&[], &[]), Err(NotChosen::NotFound));
    }

    #[test]
    fn each_selector_finds_its_identity_in_any_case() {
        let all = [Identity::system(), Identity::user("a")];
        let a = &all[1];
        for (parameter, id) in [
            ("client_id", &a.client_id),
            ("object_id", &a.object_id),
            ("msi_res_id", &a.resource_id),
            ("mi_res_id", &a.resource_id),
        ] {
            let asked = query(&[(parameter, &id.to_uppercase())]);
            assert_eq!(choose(&all, &asked).unwrap(), (a, Some(parameter)));
        }
        let empty = query(&[("client_id", "")]);
        assert_eq!(choose(&all, &empty), Err(NotChosen::NotFound));
        let two = query(&[("client_id", &a.client_id), ("object_id", &a.object_id)]);
        assert_eq!(choose(&all, &two), Err(NotChosen::TwoSelectors));
    }
}
