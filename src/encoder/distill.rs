//! Making a static encoder out of a sentence encoder.
