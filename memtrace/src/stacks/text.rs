//! Names from the tracee, made fit to be printed. Pure.

/// Longest name kept, in bytes; deeply nested C++ templates are cut.
pub const MAX_NAME_BYTES: usize = 1024;

/// A name without anything that a terminal would obey, cut at [`MAX_NAME_BYTES`].
///
/// Control characters, and the invisible ones that reorder text, become U+FFFD.
pub fn clean(name: &str) -> String {
    let mut cleaned = String::with_capacity(name.len().min(MAX_NAME_BYTES));
    for character in name.chars() {
        let is_harmful = character.is_control()
            || matches!(character,
                '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
        let character = if is_harmful { char::REPLACEMENT_CHARACTER } else { character };
        if cleaned.len() + character.len_utf8() > MAX_NAME_BYTES {
            cleaned.push('…');
            break;
        }
        cleaned.push(character);
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_names_of_every_language_stay_as_they_are() {
        for name in [
            "main.(*server).handle",
            "std::vector<int, std::allocator<int> >::push_back(int const&)",
            "<alloc::vec::Vec<T> as core::ops::drop::Drop>::drop",
            "größe.計算",
        ] {
            assert_eq!(clean(name), name);
        }
    }

    #[test]
    fn an_escape_sequence_does_not_reach_the_terminal() {
        assert_eq!(clean("a\x1b[31mb\u{202e}\nc\u{9b}"), "a\u{fffd}[31mb\u{fffd}\u{fffd}c\u{fffd}");
    }

    proptest! {
        #[test]
        fn no_name_is_longer_than_the_most_nor_holds_a_control(name in "\\PC{0,200}|.{0,2000}") {
            let cleaned = clean(&name);
            prop_assert!(cleaned.len() <= MAX_NAME_BYTES + '…'.len_utf8());
            prop_assert!(!cleaned.chars().any(char::is_control));
        }
    }
}
