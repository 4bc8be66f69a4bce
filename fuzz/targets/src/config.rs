//! Configurations of model folders and of training runs, and the networks that they describe.

use tiergrad::nn::Source;
use tiergrad::pipeline::{Network, NetworkConfig, Pipeline};
use tiergrad::train::Config;
use tiergrad::{DType, Tensor};

use crate::bounds::{bounded, file, folder, of_file};

/// A safetensors file of one number, so that what is missing is found missing.
const WEIGHTS: &[u8] = b"\x38\0\0\0\0\0\0\0{\"w\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}    \0\0\0\0";
/// Largest network that is built, in parameters, and largest picture that it is shown, in pixels.
const LARGEST: [usize; 2] = [1 << 14, 1 << 10];
/// For building and running it.
const ROOM: usize = 64 << 20;

pub(super) fn run(data: &[u8]) {
    if data.trim_ascii_start().starts_with(b"{") { model(data) } else { training(data) }
}

/// config.json of a model folder.
fn model(data: &[u8]) {
    file("model.safetensors", WEIGHTS);
    file("config.json", data);
    let mut config = None;
    bounded(of_file(data), || {
        drop(Pipeline::open(folder(), true));
        config = serde_json::from_slice::<NetworkConfig>(data).ok().filter(is_small);
    });
    if let Some(config) = config {
        bounded(ROOM, || {
            let network = Network::new(&Source::drawn(1, DType::F32).params(), &config).expect("its shapes were fine");
            assert_eq!(NetworkConfig::of(&network), config);
            use_once(&network, &config);
        });
    }
}

/// The TOML of a training run.
fn training(data: &[u8]) {
    let path = file("config.toml", data);
    let mut model = None;
    bounded(of_file(data), || {
        let Ok(config) = Config::read(Some(&path), &[]) else { return };
        let again = file("again.toml", config.to_toml().expect("what was read can be written").as_bytes());
        assert_eq!(Config::read(Some(&again), &[]).expect("what was written can be read"), config);
        if config.check().is_ok() {
            drop(config.preprocess());
            model = Some(NetworkConfig::TiergradDualEncoder(config.model)).filter(is_small);
        }
    });
    if let Some(config) = model {
        bounded(ROOM, || {
            let network = Network::new(&Source::drawn(1, DType::F32).params(), &config).expect("its shapes were fine");
            use_once(&network, &config);
        });
    }
}

/// Whether the network has few parameters; learned without making them, which must not take memory in proportion.
fn is_small(config: &NetworkConfig) -> bool {
    let source = Source::shapes();
    Network::new(&source.params(), config).is_ok()
        && source.asked().values().map(|dims| dims.numel()).fold(0usize, usize::saturating_add) <= LARGEST[0]
}

fn use_once(network: &Network, config: &NetworkConfig) {
    if let Some(vision) = config.vision() {
        let (side, channels) = (vision.image_size(), vision.channels());
        if side.saturating_mul(side) <= LARGEST[1] && config.check_pixels(channels, [side, side]).is_ok() {
            drop(network.say_images(&Tensor::full([1, channels, side, side], 0.5, DType::F32)));
        }
    }
    if let Some(text) = config.text() {
        let length = text.max_length().min(4);
        let ids: Vec<i64> = (0..length as i64).map(|id| id.min(text.vocabulary() as i64 - 1)).collect();
        drop(network.say_texts(&Tensor::from_slice(&ids, [1, length]), &Tensor::full([1, length], 1.0, DType::U8)));
    }
}
