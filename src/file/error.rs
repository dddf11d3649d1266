//! What can be wrong with a file.

/// Why a file, or a tensor of it, cannot be read. The messages are one line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// The bytes are not what a writer of this format wrote.
    Damaged(String),
    /// The file does not begin as a `.dcb` file does.
    WrongKind(String),
    /// The file is well formed, but uses a version or feature that is not read here.
    Unsupported(String),
    /// More memory is needed than the caller allowed.
    Limit(String),
}

impl Error {
    /// What was wrong.
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::Damaged(message) | Self::WrongKind(message) | Self::Unsupported(message) | Self::Limit(message) => {
                message
            }
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str(self.message())
    }
}

impl std::error::Error for Error {}

/// A name as messages have it: one line, and not longer than a line should be.
pub(crate) fn quoted(name: &str) -> String {
    let mut text: String = name.chars().take(80).map(|sign| if sign.is_control() { '?' } else { sign }).collect();
    if text.len() < name.len() {
        text.push_str("...");
    }
    format!("'{text}'")
}

/// An index that is not one.
pub(crate) fn bad_index(what: &str) -> Error {
    Error::Damaged(format!("damaged index: {what}"))
}
