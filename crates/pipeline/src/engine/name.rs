//! Names of devices, which are compared for every record.

/// Bytes of a name that is kept where it is needed, and not elsewhere: most are shorter.
const SHORT_MAX: usize = 22;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    Short { len: u8, bytes: [u8; SHORT_MAX] },
    Long(Box<str>),
}

impl Name {
    #[inline]
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => &bytes[..usize::from(*len)],
            Self::Long(name) => name.as_bytes(),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            // They are the bytes of a text.
            Self::Short { .. } => std::str::from_utf8(self.as_bytes()).unwrap_or_default(),
            Self::Long(name) => name,
        }
    }

    #[inline]
    pub(super) fn is(&self, other: &str) -> bool {
        is_same(self.as_bytes(), other.as_bytes())
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        let mut bytes = [0; SHORT_MAX];
        match bytes.get_mut(..name.len()) {
            Some(short) => {
                short.copy_from_slice(name.as_bytes());
                Self::Short { len: name.len() as u8, bytes }
            }
            None => Self::Long(name.into()),
        }
    }
}

/// As `==`, for names: they are short, and a call costs more than to compare them.
#[inline]
pub(super) fn is_same(a: &[u8], b: &[u8]) -> bool {
    fn ends<const N: usize>(of: &[u8]) -> Option<([u8; N], [u8; N])> {
        Some((*of.first_chunk()?, *of.last_chunk()?))
    }
    if a.len() != b.len() {
        return false;
    }
    match a.len() {
        4..=8 => ends::<4>(a) == ends::<4>(b),
        9..=16 => ends::<8>(a) == ends::<8>(b),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_they_were_and_nothing_else() {
        let long = "abcdefghijklmnopqrstuvwxyzäöü";
        for len in (0..=long.len()).filter(|len| long.is_char_boundary(*len)) {
            let name = Name::from(&long[..len]);
            assert_eq!(name.as_str(), &long[..len]);
            assert!(name.is(&long[..len]) && !name.is(&format!("{}x", &long[..len])));
            for at in 0..len.min(26) {
                let mut other = long[..len].to_owned();
                other.replace_range(at..=at, "X");
                assert!(!name.is(&other), "{other}");
            }
        }
    }
}
