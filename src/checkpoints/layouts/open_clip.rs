//! OpenAI's CLIP (CheXzero's checkpoints too) and open_clip's models, which have the same names where a tower is open_clip's own; a tower
//! can be a timm vision transformer or a Hugging Face BERT instead, as in BiomedCLIP.

use serde_json::json;

use super::{Evidence, Layout, Pixels, bert, timm};
use crate::checkpoints::keys::Keys;
use crate::checkpoints::sizes::Shapes;
use crate::error::{Error, Result};
use crate::models::bert::BertConfig;
use crate::models::clip_text::{TextConfig, WholeText};
use crate::models::text_tower::TextTowerConfig;
use crate::models::vit::VitConfig;
use crate::models::{DualEncoderConfig, GlobalImage, GlobalText, NetworkConfig};
use crate::nn::{Activation, ProjectionKind};

const OWN: &str = "
    input_resolution -> ignored: a size that the tensors show
    context_length -> ignored: a size that the tensors show
    vocab_size -> ignored: a size that the tensors show
    *attn_mask -> ignored: the causal mask
    visual.class_embedding -> vision_model.embeddings.class_embedding
    visual.positional_embedding -> vision_model.embeddings.position_embedding.weight
    visual.conv1.* -> vision_model.embeddings.patch_embedding.*
    visual.ln_pre.* -> vision_model.pre_layrnorm.*
    visual.ln_post.* -> vision_model.post_layernorm.*
    visual.proj -> visual_projection.weight, transposed
    logit_scale -> logit_scale
";

/// A stack of blocks: below `@`, here below `$`.
const BLOCKS: &str = "
    @resblocks.#.ln_1.* -> $.encoder.layers.#.layer_norm1.*
    @resblocks.#.attn.in_proj_* -> $.encoder.layers.#.self_attn.{q,k,v}_proj.*
    @resblocks.#.attn.out_proj.* -> $.encoder.layers.#.self_attn.out_proj.*
    @resblocks.#.ln_2.* -> $.encoder.layers.#.layer_norm2.*
    @resblocks.#.mlp.c_fc.* -> $.encoder.layers.#.mlp.fc1.*
    @resblocks.#.mlp.c_proj.* -> $.encoder.layers.#.mlp.fc2.*
";

/// open_clip's text transformer below `@`.
const TEXT: &str = "
    @token_embedding.weight -> text_model.embeddings.token_embedding.weight
    @positional_embedding -> text_model.embeddings.position_embedding.weight
    @ln_final.* -> text_model.final_layer_norm.*
    @text_projection -> text_projection.weight, transposed
";

/// Projections behind towers of other libraries.
const OTHERS: &str = "
    visual.head.proj.weight -> visual_projection.weight
    text.proj.weight -> text_projection.weight
    text.proj.0.* -> text_projection.fc1.*
    text.proj.2.* -> text_projection.fc2.*
";

/// The names of own towers.
fn own_names() -> String {
    let blocks = |at: &str, here: &str| BLOCKS.replace('@', at).replace('$', here);
    [
        OWN.to_owned(),
        blocks("visual.transformer.", "vision_model"),
        blocks("transformer.", "text_model"),
        blocks("text.transformer.", "text_model"),
        // OpenAI's own names first: they are the ones that are written.
        TEXT.replace('@', ""),
        TEXT.replace('@', "text."),
    ]
    .concat()
}

/// Those of other libraries' towers, then those of own ones, of which there may be one.
fn custom_names() -> String {
    [timm::names(TRUNK), bert::encoder("text.transformer."), OTHERS.to_owned(), own_names()].concat()
}

const OWN_IMAGES: &str = "visual.class_embedding";
const TRUNK: &str = "visual.trunk.";
const TIMM_IMAGES: &str = "visual.trunk.patch_embed.proj.weight";
const BERT_TEXTS: &str = "text.transformer.embeddings.word_embeddings.weight";

pub(super) const OPENAI: Layout = Layout {
    name: "OpenAI CLIP",
    assumed: openai,
    pixels: Pixels::OpenAi,
    fits: |e| !e.open_clip.is_some() && e.has("token_embedding.weight") && e.has(OWN_IMAGES),
    names: own_names,
    config,
};

/// OpenAI's own files say their sizes in three more tensors; a plain state dict may be another program's.
fn openai(evidence: &Evidence) -> Option<&'static str> {
    let note = "no open_clip_config.json beside: QuickGELU and heads of 64 are assumed, which is OpenAI's (and CheXzero's) way";
    (!evidence.has("input_resolution")).then_some(note)
}

fn no_open_clip(evidence: &Evidence) -> Option<&'static str> {
    let note = "no open_clip_config.json beside: QuickGELU, heads of 64 and this pooling are assumed";
    (!evidence.open_clip.is_some()).then_some(note)
}

pub(super) const OPEN_CLIP: Layout = Layout {
    name: "open_clip",
    assumed: no_open_clip,
    pixels: Pixels::OpenClip,
    fits: |e| e.has(OWN_IMAGES),
    names: own_names,
    config,
};

pub(super) const CUSTOM: Layout = Layout {
    name: "open_clip CustomTextCLIP",
    assumed: no_open_clip,
    pixels: Pixels::OpenClip,
    fits: |e| e.has(TIMM_IMAGES) || e.has(BERT_TEXTS),
    names: custom_names,
    config,
};

fn config(shapes: &Shapes, evidence: &Evidence) -> Result<NetworkConfig> {
    let whole = evidence.open_clip.part("model_cfg");
    let keys = if whole.is_some() { whole } else { evidence.open_clip.clone() };
    // OpenAI's code knows nothing else; open_clip has to be told.
    let quick = keys.flag("quick_gelu")?.unwrap_or(!keys.is_some());
    let (vision, text) = (keys.part("vision_cfg"), keys.part("text_cfg"));
    let (vision, global_image) = if evidence.has(TIMM_IMAGES) {
        timm_images(shapes, evidence, &vision)?
    } else {
        own_images(shapes, &vision, quick)?
    };
    let Some((joint, text_projection)) = shapes.text_projection()? else {
        let near = ["text_projection", "text.proj.weight", "text.proj.0.weight"].map(|name| shapes.near(name)).concat();
        return Err(Error::new(format!("text_projection, or text.proj, is missing{near}")));
    };
    keys.agree(&[("embed_dim", joint)])?;
    let (text, global_text): (TextTowerConfig, _) = if evidence.has(BERT_TEXTS) {
        let (text, global) = bert_texts(shapes, &text, text_projection)?;
        (text.into(), global)
    } else {
        (own_texts(shapes, &text, quick)?.into(), GlobalText::Token)
    };
    Ok(NetworkConfig::TiergradDualEncoder(DualEncoderConfig {
        vision: vision.into(),
        text,
        joint,
        global_image: Some(global_image),
        global_text: Some(global_text),
        text_projection,
        ..DualEncoderConfig::default()
    }))
}

/// The activation and epsilon of one of open_clip's own towers.
fn own_tower(keys: &Keys, quick: bool) -> Result<(Activation, f64)> {
    let tanh = keys.part("act_kwargs").text("approximate")? == Some("tanh");
    let eps = keys.part("norm_kwargs").number("eps")?.unwrap_or(1e-5);
    Ok((
        if quick {
            Activation::QuickGelu
        } else if tanh {
            Activation::GeluTanh
        } else {
            Activation::Gelu
        },
        eps,
    ))
}

fn own_images(shapes: &Shapes, keys: &Keys, quick: bool) -> Result<(VitConfig, GlobalImage)> {
    let head_width = keys.count("head_width")?.unwrap_or(64).max(1);
    let [width, ..] = shapes.of::<4>("vision_model.embeddings.patch_embedding.weight")?;
    let (activation, eps) = own_tower(keys, quick)?;
    let vit = VitConfig { activation, eps, ..shapes.vit(Some(width / head_width))? };
    keys.agree(&[("width", vit.width), ("layers", vit.depth), ("patch_size", vit.patch_size)])?;
    keys.agree(&[("image_size", vit.image_size)])?;
    keys.only("pool_type", &[json!("tok")])?;
    for key in ["attentional_pool", "global_average_pool", "final_ln_after_pool"] {
        keys.only(key, &[json!(false)])?;
    }
    Ok((vit, GlobalImage::Cls))
}

/// The config names timm's model, but the tensors count.
fn timm_images(shapes: &Shapes, evidence: &Evidence, keys: &Keys) -> Result<(VitConfig, GlobalImage)> {
    let vit = timm::vit(shapes, keys.text("timm_model_name")?.unwrap_or_default())?;
    if evidence.has("visual.trunk.fc_norm.weight") {
        return Err(Error::new(
            "a norm behind the pooling (visual.trunk.fc_norm): a patch alone has no embedding then",
        ));
    }
    keys.only("timm_proj", &[json!("linear")])?;
    let global = match keys.text("timm_pool")? {
        // Without a class token timm's models take the mean.
        None | Some("") => GlobalImage::or_default(None, vit.class_token),
        Some("token") if vit.class_token => GlobalImage::Cls,
        Some("avg") => GlobalImage::MeanPatches,
        _ => return Err(keys.wrong("timm_pool", "not supported here: token and avg are")),
    };
    Ok((vit, global))
}

fn own_texts(shapes: &Shapes, keys: &Keys, quick: bool) -> Result<TextConfig> {
    // Where a config is silent, what open_clip's CLIPTextCfg has.
    let heads = if keys.is_some() { Some(keys.count("heads")?.unwrap_or(8)) } else { None };
    let (activation, eps) = own_tower(keys, quick)?;
    let text = TextConfig {
        activation,
        eps,
        text_uses_attention_mask: false,
        whole: WholeText::LargestId,
        ..shapes.clip_text(heads)?
    };
    keys.agree(&[("width", text.width), ("layers", text.depth), ("vocab_size", text.vocabulary)])?;
    keys.agree(&[("context_length", text.max_length)])?;
    keys.only("pool_type", &[json!("argmax")])?;
    for key in ["no_causal_mask", "embed_cls"] {
        keys.only(key, &[json!(false)])?;
    }
    Ok(text)
}

/// The config names Hugging Face's model, but the tensors count; its heads are 64 wide.
fn bert_texts(shapes: &Shapes, keys: &Keys, projection: ProjectionKind) -> Result<(BertConfig, GlobalText)> {
    let mut text = shapes.bert(None)?;
    let pooler = keys.text("hf_pooler_type")?;
    let global = match pooler.or(keys.is_some().then_some("mean_pooler")) {
        // The projection of a mean is the mean of the projections only where it is linear.
        Some("mean_pooler") if projection == ProjectionKind::Linear => GlobalText::MeanTokens,
        Some("cls_pooler") if !text.pooler => GlobalText::Token,
        None | Some("cls_last_hidden_state_pooler") => GlobalText::Token,
        _ => return Err(keys.wrong("hf_pooler_type", "not supported here with these tensors")),
    };
    text.pooler = false;
    if keys.count("context_length")?.is_some_and(|length| length > text.max_length) {
        return Err(keys.wrong("context_length", &format!("there are only {} positions", text.max_length)));
    }
    Ok((text, global))
}
