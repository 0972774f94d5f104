//! Selectors on the command line: read before they are sent, so that a mistake is shown where it is.

use super::Failure;
use crate::api::selector::Selector;

/// Checks a selector.
///
/// # Errors
/// [`Failure::Usage`] that points at the character.
pub(super) fn check(text: &str) -> Result<(), Failure> {
    Selector::parse(text).map(drop).map_err(|error| {
        // Tabs and the like would move the mark.
        let shown = super::output::clean(text);
        Failure::Usage(format!("the selector is not understood\n  {shown}\n  {:>1$}\n{error}", '^', error.at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_pointed_at() {
        assert_eq!(check("site=berlin,!spare"), Ok(()));
        let Err(failure) = check("site=berlin rack=3") else { panic!("it is wrong") };
        insta::assert_snapshot!(failure.to_string(), @r#"
        the selector is not understood
          site=berlin rack=3
                      ^
        expected a comma or the end, found "rack" at character 13; an example is site=berlin,kind in (picclaw,gateway),!spare
        "#);
    }
}
