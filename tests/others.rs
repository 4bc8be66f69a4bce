//! The `tier` command on checkpoints of other programs: verified, converted, timed, trained from.

mod common;
mod runs;

use std::path::{Path, PathBuf};
use std::process::Command;

use runs::*;
use tiergrad::distance;

#[test]
fn verify_tells_tensor_by_tensor_and_fails_where_one_does() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let at = |name: &str| text(&golden.join(name)).to_owned();
    let [model, case] = [at("own"), at("own.case.safetensors")];
    let lines = done(&["verify", "--model", &model, "--case", &case, "--json", "-q"]);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() > 100 && lines.iter().all(|line| line["pass"] == true && line["rel_l2"].is_number()));
    let parts = ["--image-model", &at("biovil.pt"), "--text-model", &at("cxr-bert")].map(str::to_owned);
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    done(&[&["verify", "--case", &at("parts.case.safetensors")], &parts[..]].concat());

    // The same model with one value changed.
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("model");
    std::fs::create_dir(&changed).unwrap();
    std::fs::copy(golden.join("own/config.json"), changed.join("config.json")).unwrap();
    let mut bytes = std::fs::read(golden.join("own/model.safetensors")).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    std::fs::write(changed.join("model.safetensors"), &bytes).unwrap();
    let output = tier(&["verify", "--model", text(&changed), "--case", &case]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("FAIL"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("differ by more than the case allows"));
    // Also where nobody reads its lines to the end.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let arguments = ["verify", "--model", text(&changed), "--case", &case];
    let unread = Command::new(env!("CARGO_BIN_EXE_tier")).args(arguments).stdout(writer).output().unwrap();
    assert_eq!(unread.status.code(), Some(1));

    // No case, half a case, another model's case.
    refused(&["verify", "--model", &model, "--case", &at("own/model.safetensors")], 1, &["not a parity case"]);
    let half = folder.path().join("half.case.safetensors");
    let whole = std::fs::read(&case).unwrap();
    std::fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    refused(&["verify", "--model", &model, "--case", text(&half)], 1, &["half.case.safetensors"]);
    refused(&["verify", "--model", &at("cxr-bert"), "--case", &case], 1, &["own.case.safetensors", "no images"]);
}

#[test]
fn a_converted_model_embeds_the_same_bits_and_one_of_fewer_bits_tells_its_error() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let source = text(model());
    let image = phantoms().join("images").read_dir().unwrap().next().unwrap().unwrap().path();
    let embed = |model: &str, name: &str| {
        let out = at(name);
        let asked = ["--images", text(&image), "--texts", "left effusion", "normal heart"];
        done(&[&["embed", "-q", "--model", model, "-o", &out], &asked[..]].concat());
        // The tensors, which come after the header.
        let bytes = std::fs::read(&out).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].to_vec()
    };
    done(&["convert", source, "-o", &at("same"), "-q"]);
    model_files(&folder.path().join("same"));
    assert!(embed(source, "a.safetensors") == embed(&at("same"), "b.safetensors"));

    for dtype in ["bf16", "int8"] {
        let output = tier(&["convert", source, "-o", &at(dtype), "--dtype", dtype, "--json"]);
        let said = String::from_utf8_lossy(&output.stderr);
        let told = said.lines().find(|line| line.starts_with(&format!("{dtype} against the source in f32"))).unwrap();
        assert!(told.contains("image_embeds") && told.contains("text_embeds"), "{told}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let error = json["rel_l2"]["text_embeds"].as_f64().unwrap();
        assert!(error > 0.0 && error < 0.05, "{json}");
        embed(&at(dtype), "c.safetensors");
        let inspected: serde_json::Value = serde_json::from_str(&done(&["inspect", &at(dtype), "--json"])).unwrap();
        assert!(inspected["dtypes"][if dtype == "int8" { "i8" } else { dtype }].as_u64() > Some(0), "{inspected}");
    }

    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let golden = |name: &str| text(&golden.join(name)).to_owned();
    let parts = ["--image-model", &golden("biovil.pt"), "--text-model", &golden("cxr-bert")].map(str::to_owned);
    let case = golden("parts.case.safetensors");
    let convert =
        [&["convert", "-o", &at("joined"), "--case", &case, "--json"], &parts.each_ref().map(String::as_str)[..]];
    let json: serde_json::Value = serde_json::from_str(&done(&convert.concat())).unwrap();
    assert!(json["rel_l2"].as_object().unwrap().values().all(|error| error.as_f64() == Some(0.0)), "{json}");
    done(&["embed", "--model", &at("joined"), "--inputs", &case, "-o", &at("d.safetensors")]);

    refused(&["convert", source, "-o", &at("same")], 2, &["same", "--force"]);
    refused(&["convert", source, "-o", source, "--force"], 2, &["read from"]);
    refused(&["convert", source, "-o", &at("clip"), "--to", "hf-clip"], 1, &["CLIPModel", "class token"]);
    refused(&["convert", "-o", &at("none")], 2, &["SRC"]);
    assert!(!folder.path().join("clip").exists());
}

#[test]
fn models_of_one_side_and_of_two_files_are_timed_and_shown_without_what_they_do_not_need() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let at = |name: &str| text(&golden.join(name)).to_owned();
    let timed = |arguments: &[&str]| -> serde_json::Value {
        let line = done(&[&["bench", "--once", "--json", "-q"], arguments].concat());
        serde_json::from_str(line.trim()).unwrap()
    };
    let (biovil, bert, clip) = (at("biovil.pt"), at("cxr-bert"), at("hf-clip"));
    assert_eq!(timed(&["--model", &biovil, "--crop", "64", "--batch", "2"])["what"], "image");
    assert_eq!(timed(&["--model", &bert])["what"], "text");
    let pair = ["--image-model", &biovil, "--text-model", &bert];
    assert_eq!(timed(&[&pair[..], &["--what", "text"]].concat())["model"], format!("{biovil} + {bert}"));
    assert_eq!(timed(&["--model", &clip, "--what", "text", "--batch", "3"])["batch"], 3);
    refused(&["bench", "--model", &bert, "--what", "image", "-q"], 2, &["no images"]);
    refused(&["bench"], 2, &["--model"]);
    refused(&["tokenize", "--model", &biovil, "a"], 2, &["no texts"]);
    refused(&["preprocess", "--model", &bert, "x.png", "-o", "x.safetensors"], 2, &["no images"]);
    refused(&["devices", "--threads", "0"], 2, &["--threads"]);

    // Our own format without preprocessor_config.json and tokenizer.json, which given values do not need.
    let out = text(&folder.path().join("e.safetensors")).to_owned();
    let embed = |inputs: &str| tier(&["embed", "--model", &at("own"), "--inputs", inputs, "-o", &out, "-q"]);
    assert!(embed(&at("own.case.safetensors")).status.success());
    let shown: serde_json::Value = serde_json::from_str(&done(&["inspect", &out, "--json"])).unwrap();
    let described: serde_json::Value = serde_json::from_str(shown["metadata"]["tiergrad"].as_str().unwrap()).unwrap();
    let rows: Vec<String> = serde_json::from_str(described["images"].as_str().unwrap()).unwrap();
    assert!(rows.len() > 1 && rows[1].ends_with("own.case.safetensors[1]"), "{rows:?}");

    // What is not an id, a mask or a pixel is said, not cast.
    let inputs = folder.path().join("inputs.safetensors");
    let ids = |values: &[i64]| tiergrad::Tensor::from_slice(values, [1, values.len()]);
    let floats = |values: &[f32]| tiergrad::Tensor::from_slice(values, [1, values.len()]);
    let pixels = |x: f32| tiergrad::Tensor::from_slice(&vec![x; 3 * 32 * 32], [1, 3, 32, 32]);
    for (tensors, words) in [
        (vec![("input_ids", floats(&[1.0, 2.7]))], "integers"),
        (vec![("input_ids", ids(&[1, 2])), ("attention_mask", ids(&[1, 7]))], "has 7"),
        (vec![("input_ids", ids(&[1, 2])), ("attention_mask", ids(&[0, 0]))], "no real token in row 0"),
        (vec![("input_ids", ids(&[1, 2])), ("attention_mask", ids(&[1]))], "attention_mask [1, 1]"),
        (vec![("input_ids", ids(&[1, 1 << 40]))], "input_ids[0, 1]"),
        (vec![("pixel_values", pixels(f32::NAN))], "not finite at element 0"),
        (vec![("pixels", pixels(0.0))], "neither pixel_values nor input_ids"),
    ] {
        let named = tensors.iter().map(|(name, t)| ((*name).to_owned(), t));
        tiergrad::formats::safetensors::save(&inputs, named, &std::collections::BTreeMap::new()).unwrap();
        let output = embed(text(&inputs));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(words), "{words:?} is not in: {said}");
    }
}

#[test]
fn training_starts_from_the_weights_of_other_programs_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let [clip60, clip40, bert50] = ["clip60.json", "clip40.json", "vocab.txt"].map(|name| folder.path().join(name));
    common::clip_tokenizer(&clip60, 60, 77);
    common::clip_tokenizer(&clip40, 40, 77);
    common::bert_vocabulary(&bert50, 50);
    let (whole, image, text_side) = ("--init", "--init-image", "--init-text");
    for (i, (from, tokenizer)) in [
        (vec![(whole, "hf-clip")], &clip60),
        (vec![(image, "alone/hf-vit-old"), (text_side, "alone/clip-text")], &clip40),
        (vec![(image, "alone/resnet"), (text_side, "cxr-bert")], &bert50),
        (vec![(image, "biovil.pt"), (text_side, "cxr-bert")], &bert50),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(format!("run-{i}"));
        let pairs = phantoms().join("pairs.csv");
        let tokenizer = format!("tokenizer.path={}", text(tokenizer));
        let from: Vec<(&str, PathBuf)> = from.into_iter().map(|(flag, name)| (flag, golden.join(name))).collect();
        let mut arguments = vec!["train", "--out", text(&out), "-q", "--pairs", text(&pairs), "--set", &tokenizer];
        // So small a step that nothing moves: what is saved at the end is what the first step saw.
        for setting in ["train.batch=16", "train.epochs=1", "schedule.lr=1e-30"] {
            arguments.extend(["--set", setting]);
        }
        arguments.extend(from.iter().flat_map(|(flag, path)| [*flag, text(path)]));
        done(&arguments);
        let model = tiergrad::checkpoints::Checkpoint::open(&out.join("model"), true).unwrap().tensors().unwrap();
        let mut compared = 0;
        for (flag, path) in &from {
            let source = tiergrad::checkpoints::Checkpoint::open(path, true).unwrap().tensors().unwrap();
            let sides = match *flag {
                "--init-image" => ["vision_model.", "visual_projection."],
                "--init-text" => ["text_model.", "text_projection."],
                _ => ["", "logit_scale"],
            };
            for (name, t) in &source {
                // The pooler leads nowhere; running statistics move; a new joint space has a new way into it.
                let Some(found) = model.get(name).filter(|_| sides.iter().any(|side| name.starts_with(side))) else {
                    continue;
                };
                if name.contains(".running_") || found.dims() != t.dims() {
                    continue;
                }
                let off = distance::largest(&found.to_f64_vec(), &t.to_f64_vec());
                assert!(off < 1e-25, "{name} of {}: {off}", path.display());
                compared += 1;
            }
        }
        assert!(compared >= 30, "{compared} tensors of {from:?}");
        assert_eq!(log(&out)[0]["step"], 1);
    }
}
