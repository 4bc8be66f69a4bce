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
    "the heart and lungs are normal on this radiograph",
    "normal chest with clear lungs and normal heart size",
    "this chest x-ray shows no abnormality",
];

/// For every label, in the order of the tables.
pub const PROMPTS: [Prompts; 8] = [
    Prompts {
        label: "cardiomegaly",
        positive: &[
            "the heart is enlarged",
            "the radiograph shows cardiomegaly",
            "the cardiac silhouette is enlarged",
            "enlarged heart with an increased cardiothoracic ratio",
        ],
        negative: &["the heart is not enlarged and there is no cardiomegaly"],
    },
    Prompts {
        label: "pleural effusion",
        positive: &[
            "the radiograph shows a pleural effusion",
            "there is pleural fluid with blunting of the costophrenic angle",
            "pleural effusion at the lung base",
            "a left or right pleural effusion is visible",
        ],
        negative: &["there is no pleural effusion and the costophrenic angles are sharp"],
    },
    Prompts {
        label: "consolidation",
        positive: &[
            "the radiograph shows consolidation",
            "there is a focal airspace opacity in the lung",
            "airspace consolidation with air bronchograms in the lung",
            "a patchy opacity compatible with pneumonia",
        ],
        negative: &["there is no consolidation and no airspace opacity"],
    },
    Prompts {
        label: "pneumothorax",
        positive: &[
            "the radiograph shows a pneumothorax",
            "there is a pneumothorax with a visible pleural line",
            "a left or right pneumothorax is visible",
            "pneumothorax with the lung retracted from the chest wall",
        ],
        negative: &["there is no pneumothorax on either side"],
    },
    Prompts {
        label: "nodule",
        positive: &[
            "the radiograph shows a pulmonary nodule",
            "there is a rounded nodule in the lung",
            "a well-defined nodular opacity in the lung",
            "a solitary lung nodule is visible",
        ],
        negative: &["there is no nodule in either lung"],
    },
    Prompts {
        label: "atelectasis",
        positive: &[
            "the radiograph shows atelectasis",
            "there is linear or plate-like atelectasis in the lung",
            "collapse of a lobe with volume loss",
            "atelectasis at the lung base is visible",
        ],
        negative: &["there is no atelectasis and no collapse"],
    },
    Prompts {
        label: "support device",
        positive: &[
            "a tube or a catheter is in place",
            "there is a central venous catheter with its tip in the SVC",
            "the radiograph shows a pacemaker with leads",
            "an endotracheal tube or a nasogastric tube is in place",
            "a chest tube is in place",
        ],
        negative: &["there is no tube, no catheter and no pacemaker"],
    },
    Prompts {
        label: NORMAL,
        positive: &ALL_CLEAR,
        negative: &[
            "the radiograph is abnormal",
            "there is an abnormality in the chest",
            "there is an effusion, a consolidation, a nodule or a pneumothorax",
            "the heart is enlarged or a catheter is in place",
        ],
    },
];
