//! The sentences that ask a zero-shot model for each label. None of them is one that the grammar of impressions can emit.

/// The label of films without findings.
pub const NORMAL: &str = "normal";

/// Sentences for and against a label.
pub struct Prompts {
    /// The label's name.
    pub label: &'static str,
    /// What is said where it is present.
    pub positive: &'static [&'static str],
    /// What is said where it is absent.
    pub negative: &'static [&'static str],
}

/// Absent, whatever the label; [`NORMAL`] alone does not use them.
pub const ALL_CLEAR: [&str; 3] = [
    "clear lungs with a normal heart size",
    "no acute disease of the heart or the lungs",
    "normal heart and clear lungs on this chest radiograph",
];

/// For every label, in the order of the tables. Worded as reports are, with sides and sizes at times; what speaks against
/// [`NORMAL`] are plain findings, since `abnormality` is a word of normal reports.
pub const PROMPTS: [Prompts; 8] = [
    Prompts {
        label: "cardiomegaly",
        positive: &[
            "the heart is mildly enlarged",
            "the heart is severely enlarged",
            "cardiomegaly with an increased cardiothoracic ratio",
            "enlargement of the cardiac silhouette is present",
        ],
        negative: &["no cardiomegaly and a normal heart size"],
    },
    Prompts {
        label: "pleural effusion",
        positive: &[
            "small pleural effusion on the left",
            "small pleural effusion on the right",
            "large pleural effusion on the left",
            "large pleural effusion on the right",
            "pleural fluid with blunting of the costophrenic angle",
        ],
        negative: &["no pleural effusion and sharp costophrenic angles"],
    },
    Prompts {
        label: "consolidation",
        positive: &[
            "patchy consolidation in the left lung",
            "patchy consolidation in the right lung",
            "dense airspace opacity in the lung with air bronchograms",
            "lobar infiltrate suspicious for pneumonia",
        ],
        negative: &["no consolidation and no airspace opacity in the lungs"],
    },
    Prompts {
        label: "pneumothorax",
        positive: &[
            "left pneumothorax with a visible pleural line",
            "right pneumothorax with a visible pleural line",
            "small pneumothorax at the apex of the lung",
            "large pneumothorax with the lung collapsed",
        ],
        negative: &["no pneumothorax on the left or on the right"],
    },
    Prompts {
        label: "nodule",
        positive: &[
            "small nodule in the left lung",
            "small nodule in the right lung",
            "rounded pulmonary nodule projecting over the lung",
            "several nodules in the lungs",
        ],
        negative: &["no pulmonary nodule in the lungs"],
    },
    Prompts {
        label: "atelectasis",
        positive: &[
            "atelectasis in bands at the left lung base",
            "atelectasis in bands at the right lung base",
            "collapse of the left lobe with volume loss",
            "collapse of the right lobe with volume loss",
            "linear opacity representing atelectasis",
        ],
        negative: &["no atelectasis and no collapse in the lungs"],
    },
    Prompts {
        label: "support device",
        positive: &[
            "support devices, tubes and lines in standard position",
            "central venous catheter with its tip in the SVC",
            "pacemaker with its leads in place",
            "endotracheal tube and nasogastric tube in place",
            "chest tube on the left or on the right",
        ],
        negative: &["no support devices, no tubes and no lines"],
    },
    Prompts {
        label: NORMAL,
        positive: &ALL_CLEAR,
        negative: &[
            "large pleural effusion on the right",
            "moderate cardiomegaly, consolidation and pleural effusion",
            "consolidation and atelectasis with a pleural effusion",
            "left pneumothorax with a visible pleural line",
            "cardiomegaly and a pacemaker with its leads in place",
        ],
    },
];
