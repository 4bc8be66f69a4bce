//! `tier tokenize`: what a model reads of a text.

use std::path::PathBuf;

use super::Global;
use super::model::Sides;
use crate::error::{At, Error, Result};
use crate::pipeline::{self, Given};
use crate::text::Tokenizer;

/// Shows the ids that texts become, special tokens included, padding left off.
#[derive(clap::Args)]
pub struct Args {
    /// A model, beside which its tokenizer lies.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["image_model", "text_model"])]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    sides: Sides,
    /// A tokenizer: a directory, tokenizer.json, vocab.json, vocab.txt or bpe_simple_vocab_16e6.txt.gz; with a model, it is that model's.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Longest text in tokens (default: what the model or the tokenizer says).
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,
    /// A file with one text per line.
    #[arg(long, value_name = "F", conflicts_with = "texts")]
    pub file: Option<PathBuf>,
    /// Texts.
    #[arg(value_name = "TEXT", required_unless_present = "file")]
    pub texts: Vec<String>,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<()> {
    let given = Given { tokenizer: args.tokenizer.clone(), max_length: args.max_length, ..Given::default() };
    let (tokenizer, path) = match &given.tokenizer {
        Some(path) if args.model.is_none() && !args.sides.is_some() => {
            (Tokenizer::open(path, args.max_length)?, path.clone())
        }
        None if args.model.is_none() && !args.sides.is_some() => {
            return Err(Error::usage("give --tokenizer PATH, --model PATH or --image-model A --text-model B"));
        }
        _ => {
            let checkpoint = args.sides.checkpoint(args.model.as_deref(), global)?;
            if checkpoint.config.text().is_none() {
                return Err(Error::usage("this model knows no texts").at(&checkpoint.path));
            }
            pipeline::tokenizer(&checkpoint, &given, |note| global.say(note))?
        }
    };
    global.say(format_args!(
        "{}: {} ids, at most {} tokens",
        path.display(),
        tokenizer.vocabulary(),
        tokenizer.max_length()
    ));
    let lines;
    let texts: Vec<&str> = match &args.file {
        Some(file) => {
            lines = std::fs::read_to_string(file).at(file)?;
            lines.strip_prefix('\u{feff}').unwrap_or(&lines).lines().collect()
        }
        None => args.texts.iter().map(String::as_str).collect(),
    };
    for text in texts {
        let (tokens, pieces) = (tokenizer.encode(&[text])?, tokenizer.pieces(text)?);
        let (ids, truncated) = (tokens.ids.to_vec::<i64>(), !tokens.cut.is_empty());
        if global.json {
            global.print(serde_json::json!({"text": text, "ids": ids, "tokens": pieces, "truncated": truncated}))?;
        } else {
            let shown: Vec<String> = pieces.iter().zip(&ids).map(|(piece, id)| format!("{piece} {id}")).collect();
            global.print(format_args!(
                "{} tokens{}: {}",
                ids.len(),
                if truncated { ", cut" } else { "" },
                shown.join(", ")
            ))?;
        }
    }
    Ok(())
}
