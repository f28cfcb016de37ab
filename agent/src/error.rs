//! How an error becomes the one line an operator reads. Every module has its own error enum; this file only prints.

use std::error::Error;

/// The message and its causes, joined by `: `, each said once: many libraries repeat their cause in their own text.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !text.is_empty() && !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line.replace(['\n', '\r'], " ")
}

/// A gRPC status as an operator reads it: the code's name and the message, never the metadata.
pub fn status(status: &tonic::Status) -> String {
    match status.message() {
        "" => format!("{:?}", status.code()),
        message => format!("{:?}: {}", status.code(), message.replace(['\n', '\r'], " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] Option<Box<Layer>>);

    #[test]
    fn a_chain_says_each_cause_once_on_one_line() {
        let error = Layer(
            "dial kas: refused",
            Some(Box::new(Layer("refused", Some(Box::new(Layer("os\n111", None)))))),
        );
        assert_eq!(chain(&error), "dial kas: refused: os 111");
    }

    #[test]
    fn a_status_is_its_code_and_message() {
        assert_eq!(status(&tonic::Status::unavailable("gone")), "Unavailable: gone");
        assert_eq!(status(&tonic::Status::unavailable("")), "Unavailable");
    }
}
