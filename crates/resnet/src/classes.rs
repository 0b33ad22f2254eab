//! Whether data have the classes that a network was trained on.

use std::collections::HashSet;
use std::fmt;

/// How many names of a kind a message lists.
const LISTED: usize = 8;

/// How the classes of data differ from those that a network was trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassMismatch {
    /// Names that the network was trained on, by label.
    pub trained: Vec<String>,
    /// Names that the data have, by label.
    pub found: Vec<String>,
}

/// Checks that data have exactly the classes that a network was `trained` on, by name and in order: a
/// label means nothing else.
///
/// # Errors
/// Tells what is missing, what was added and what is in another place.
pub fn same_classes(trained: &[String], found: &[String]) -> Result<(), ClassMismatch> {
    if trained == found {
        return Ok(());
    }
    Err(ClassMismatch { trained: trained.to_vec(), found: found.to_vec() })
}

impl std::error::Error for ClassMismatch {}

impl fmt::Display for ClassMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trained, found } = self;
        write!(f, "the network was trained on {} classes ({})", trained.len(), list(trained))?;
        let (missing, added) = (beyond(trained, found), beyond(found, trained));
        if !missing.is_empty() {
            write!(f, "; not in the data: {}", list(&missing))?;
        }
        if !added.is_empty() {
            write!(f, "; only in the data: {}", list(&added))?;
        }
        if missing.is_empty() && added.is_empty() {
            let moved = (0..trained.len().max(found.len())).find(|&label| trained.get(label) != found.get(label));
            let name = |names: &[String]| moved.and_then(|label| names.get(label).cloned()).unwrap_or("none".into());
            let label = moved.unwrap_or_default();
            write!(f, "; the data have them in another order: class {label} was {}", name(trained))?;
            write!(f, " and is {}", name(found))?;
        }
        Ok(())
    }
}

/// The names that are not among `others`.
fn beyond<'a>(names: &'a [String], others: &[String]) -> Vec<&'a String> {
    let others: HashSet<&String> = others.iter().collect();
    names.iter().filter(|name| !others.contains(name)).collect()
}

/// The first names, and how many more there are.
fn list(names: &[impl AsRef<str>]) -> String {
    let shown: Vec<&str> = names.iter().take(LISTED).map(AsRef::as_ref).collect();
    let more = names.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.into()).collect()
    }

    fn message(trained: &[&str], found: &[&str]) -> String {
        same_classes(&names(trained), &names(found)).expect_err("they differ").to_string()
    }

    #[test]
    fn the_same_names_in_the_same_order_are_the_same_classes() {
        assert_eq!(same_classes(&names(&["cat", "dog"]), &names(&["cat", "dog"])), Ok(()));
    }

    #[test]
    fn what_was_renamed_added_or_removed_is_named() {
        let start = "the network was trained on 2 classes (cat, dog); ";
        assert_eq!(
            message(&["cat", "dog"], &["dog", "kitten"]),
            format!("{start}not in the data: cat; only in the data: kitten")
        );
        assert_eq!(message(&["cat", "dog"], &["cat", "dog", "emu"]), format!("{start}only in the data: emu"));
        assert_eq!(message(&["cat", "dog"], &["cat"]), format!("{start}not in the data: dog"));
    }

    #[test]
    fn the_first_class_in_another_place_is_named() {
        let moved = message(&["ant", "cat", "dog"], &["ant", "dog", "cat"]);
        assert!(moved.ends_with("in another order: class 1 was cat and is dog"), "{moved}");
        let twice = message(&["cat", "cat"], &["cat"]);
        assert!(twice.ends_with("class 1 was cat and is none"), "{twice}");
    }

    #[test]
    fn of_many_names_the_first_are_listed() {
        let many: Vec<String> = (0..1000).map(|class| format!("n{class:04}")).collect();
        let message = same_classes(&many, &names(&["n0000"])).expect_err("they differ").to_string();
        assert!(message.contains("n0007 and 992 more"), "{message}");
        assert!(message.contains("not in the data: n0001") && message.contains("n0008 and 991 more"), "{message}");
        assert!(message.len() < 250, "{message}");
    }
}
