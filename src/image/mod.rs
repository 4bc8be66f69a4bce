//! Pictures: decoding, resizing, preprocessing and augmentation.
