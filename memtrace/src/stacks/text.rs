//! Names from the tracee, demangled and made fit to be printed. Pure.

use crate::sanitize::must_escape;

/// Longest name kept, in bytes; deeply nested C++ templates are cut.
pub const MAX_NAME_BYTES: usize = 1024;

/// A name without anything that a terminal would obey, cut at [`MAX_NAME_BYTES`].
///
/// Control characters, and the invisible ones that reorder text, become U+FFFD.
pub fn clean(name: &str) -> String {
    let mut cleaned = String::with_capacity(name.len().min(MAX_NAME_BYTES));
    for character in name.chars() {
        let character =
            if must_escape(character) { char::REPLACEMENT_CHARACTER } else { character };
        if cleaned.len() + character.len_utf8() > MAX_NAME_BYTES {
            cleaned.push('…');
            break;
        }
        cleaned.push(character);
    }
    cleaned
}

/// Longest mangled name that is demangled; longer ones stay as they are.
const MAX_MANGLED_BYTES: usize = 8192;

/// The source name of a C++ or Rust symbol, without Rust's hash; other names as they are.
///
/// Only what carries a mangling's prefix is touched: a C function `h` is not C++'s code for
/// `unsigned char`.
pub fn demangle(symbol: &str) -> std::borrow::Cow<'_, str> {
    let is_mangled = ["_Z", "__Z", "_R"].iter().any(|prefix| symbol.starts_with(prefix));
    if !is_mangled || symbol.len() > MAX_MANGLED_BYTES {
        return symbol.into();
    }
    if let Ok(name) = rustc_demangle::try_demangle(symbol) {
        return format!("{name:#}").into();
    }
    let Ok(parsed) = cpp_demangle::Symbol::new(symbol) else { return symbol.into() };
    let mut name = Bounded(String::new());
    match parsed.structured_demangle(&mut name, &cpp_demangle::DemangleOptions::default()) {
        Err(_) if name.0.len() <= MAX_NAME_BYTES => symbol.into(),
        _ => name.0.into(),
    }
}

/// Refuses to grow far beyond the longest name: each substitution of a mangled name can double it.
struct Bounded(String);

impl std::fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        if self.0.len() > MAX_NAME_BYTES {
            return Err(std::fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_mangled_names_are_demangled() {
        for (symbol, name) in [
            ("h", "h"),
            ("malloc", "malloc"),
            ("main.(*server).handle", "main.(*server).handle"),
            ("_cgo_2da089302506_Cfunc_f", "_cgo_2da089302506_Cfunc_f"),
            ("_Znwm", "operator new(unsigned long)"),
            (
                "_ZNSt6vectorIiSaIiEE9push_backERKi",
                "std::vector<int, std::allocator<int> >::push_back(int const&)",
            ),
            ("_ZN5alloc5alloc5alloc17h0123456789abcdefE", "alloc::alloc::alloc"),
            ("_RNvC6_123foo3bar", "123foo::bar"),
            ("_Zqqqq", "_Zqqqq"),
        ] {
            assert_eq!(demangle(symbol), name);
        }
    }

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

    #[test]
    fn a_name_whose_substitutions_double_it_at_every_level_is_cut() {
        const DIGITS: &[u8; 36] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let mut symbol = "_Z1f1AIiiE".to_owned();
        for last in DIGITS[..35].iter().map(|digit| char::from(*digit)) {
            symbol.push_str(&format!("S_IS{last}_S{last}_E"));
        }
        let name = demangle(&symbol);
        assert!(name.starts_with("f(A<int, int>, A<A<int, int>, A<int, int> >"), "{name}");
        assert!(name.len() < 2 * MAX_NAME_BYTES, "{} bytes", name.len());
    }

    proptest! {
        #[test]
        fn demangling_never_panics(symbol in "(_Z|_R|_ZN)[A-Za-z0-9_]{0,120}") {
            demangle(&symbol);
        }

        #[test]
        fn no_name_is_longer_than_the_most_nor_holds_a_control(name in "\\PC{0,200}|.{0,2000}") {
            let cleaned = clean(&name);
            prop_assert!(cleaned.len() <= MAX_NAME_BYTES + '…'.len_utf8());
            prop_assert!(!cleaned.chars().any(char::is_control));
        }
    }
}
