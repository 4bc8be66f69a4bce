//! The impression of a film: a grammar in the language of reports. Every finding is named; denials, comparisons and what is not a
//! finding are added at times.

use super::plan::{Device, Distractor, Label, Plan, Planned, Route, Severity, Shape, Side, Zone};
use crate::rng::Rng;

/// One of several.
fn one<'a>(rng: &mut Rng, of: &[&'a str]) -> &'a str {
    of[rng.below(of.len())]
}

/// Fills every `{a|b|c}` of a template with one of its choices, innermost first.
fn fill(rng: &mut Rng, template: &str) -> String {
    let mut text = template.to_string();
    while let Some(close) = text.find('}') {
        let Some(open) = text[..close].rfind('{') else { break };
        let choices: Vec<&str> = text[open + 1..close].split('|').collect();
        let choice = choices[rng.below(choices.len())].to_string();
        text.replace_range(open..=close, &choice);
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The impression of a film.
pub(super) fn impression(plan: &Plan, age: f32, rng: &mut Rng) -> String {
    let mut sentences: Vec<String> = if plan.findings.is_empty() { normal(rng) } else { found(plan, rng) };
    let aside = aside(plan, age, rng);
    if let (Some(aside), true) = (aside, sentences.len() < 3) {
        sentences.push(aside);
    }
    let mut text: Vec<String> = sentences.iter().map(|sentence| finish(sentence)).collect();
    if text.join(" ").split_whitespace().count() < 5 {
        text.push(finish(&fill(
            rng,
            "no {other|further|additional} {acute |significant |}abnormality {seen|identified|is seen}",
        )));
    }
    let text = text.join(" ");
    let x = rng.uniform();
    if x < 0.1 {
        text.to_lowercase()
    } else if x < 0.14 {
        text.to_uppercase()
    } else {
        text
    }
}

/// A capital first and a full stop last.
fn finish(sentence: &str) -> String {
    let mut letters = sentence.chars();
    let first = letters.next().map(|c| c.to_uppercase().collect::<String>()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

fn normal(rng: &mut Rng) -> Vec<String> {
    let lungs = [
        "{the |both |}lungs are {clear|well expanded and clear|clear bilaterally|well aerated without focal opacity}",
        "clear lungs {bilaterally|on both sides|}",
        "no {focal |}{airspace disease|consolidation|parenchymal opacity}, {pleural |}effusion or pneumothorax",
        "{no |without }pneumothorax or {pleural |}effusion and {clear|unremarkable} lung fields",
    ];
    let heart = [
        "{the |}{heart size|cardiac size|cardiac silhouette|cardiomediastinal silhouette} is {normal|within normal limits|unremarkable|not enlarged}",
        "normal {heart size|cardiomediastinal contours|cardiac and mediastinal contours}",
        "{heart and mediastinum are|mediastinal contours are} {normal|unremarkable}",
    ];
    let whole = [
        "no {acute |}{cardiopulmonary|intrathoracic|cardiothoracic} {abnormality|disease|process|finding}",
        "normal {chest radiograph|chest film|chest x-ray|radiograph of the chest|study}",
        "{unremarkable|negative} {frontal |}{chest radiograph|chest film|examination of the chest}",
        "no {radiographic |}evidence of acute {cardiopulmonary|pulmonary|thoracic} disease",
        "{no significant abnormality|nothing acute} {is |}{seen|detected} {in the chest|on this film|}",
    ];
    let bones = [
        "{the |}{bony thorax is|visualised bones are|osseous structures are} {intact|unremarkable}",
        "{both |the |}costophrenic angles are {sharp|clear}",
        "{sharp|clear} costophrenic angles and normal pulmonary {vascularity|vasculature}",
        "{the |}hemidiaphragms are {well defined|smooth}",
    ];
    let mut sentence = |from: &[&str]| {
        let template = one(rng, from);
        fill(rng, template)
    };
    let (a, b, c, d) = (sentence(&whole), sentence(&lungs), sentence(&heart), sentence(&bones));
    match rng.below(9) {
        0 => vec![a],
        1 => vec![b, c],
        2 => vec![c, b],
        3 => vec![b, a],
        4 => vec![a, c],
        5 => vec![c, b, d],
        6 => vec![b, d],
        7 => vec![format!("{c} and {b}")],
        _ => vec![b, c, a],
    }
}

/// Sentences that name all findings, some joined, and at times one that denies others.
fn found(plan: &Plan, rng: &mut Rng) -> Vec<String> {
    let mut order: Vec<&Planned> = plan.findings.iter().collect();
    rng.shuffle(&mut order);
    let mut sentences: Vec<String> = Vec::new();
    let mut phrases: Vec<String> = order.iter().map(|finding| phrase(finding, rng)).collect();
    if phrases.len() > 1 && rng.chance(0.5) {
        let last = phrases.pop().unwrap_or_default();
        let joint = one(rng, &["and", "with", "as well as", "together with", "and"]);
        let first = phrases.pop().unwrap_or_default();
        phrases.push(format!("{first} {joint} {last}"));
    }
    let frames = [
        "@",
        "@",
        "there is @",
        "{the |this |}{chest |frontal |}{radiograph|film|x-ray} {shows|demonstrates|reveals} @",
        "{the |}{lungs and heart|chest|thorax}: @",
        "abnormal {chest radiograph|chest x-ray|chest film|study|chest|radiograph} with @",
        "{findings are|appearances are} {consistent|in keeping} with @",
        "@ {seen|noted|demonstrated|visible|present}",
        "{interval development of|new|unchanged|stable|persistent} @",
        "@, {unchanged|new since the prior|similar to the previous film|stable compared with the prior study}",
    ];
    for phrase in &phrases {
        // Most often the finding and nothing else.
        let frame = if rng.chance(0.5) { "@" } else { one(rng, &frames) };
        let frame = fill(rng, frame);
        sentences.push(frame.replace('@', phrase));
    }
    if order.iter().any(|finding| finding.label == Label::Device) && sentences.len() < 3 && rng.chance(0.5) {
        sentences.push(fill(
            rng,
            "{support devices are|support hardware is|the tubes and lines are|tubes and lines are} {in place|unchanged|in {standard|satisfactory|good} position}",
        ));
    }
    let absent: Vec<Label> =
        Label::ALL.into_iter().filter(|label| plan.findings.iter().all(|finding| finding.label != *label)).collect();
    if sentences.len() < 3
        && rng.chance(0.15)
        && let Some(denied) = deny(&absent, rng)
    {
        if sentences.len() == 1 && rng.chance(0.25) {
            sentences[0] = format!("{}, without {}", sentences[0], denied);
        } else {
            let frame = one(rng, &["no @", "no @", "no @ {is seen|is identified}", "without @", "no evidence of @"]);
            let sentence = fill(rng, frame).replace('@', &denied);
            if rng.chance(0.8) { sentences.push(sentence) } else { sentences.insert(0, sentence) }
        }
    }
    sentences
}

/// One or two absent findings, as a noun.
fn deny(absent: &[Label], rng: &mut Rng) -> Option<String> {
    let mut names: Vec<&str> = absent
        .iter()
        .map(|label| match label {
            Label::Cardiomegaly => ["cardiomegaly", "cardiac enlargement"],
            Label::Effusion => ["pleural effusion", "effusion"],
            Label::Consolidation => ["focal consolidation", "airspace opacity"],
            Label::Pneumothorax => ["pneumothorax", "pneumothorax"],
            Label::Nodule => ["pulmonary nodule", "suspicious nodule"],
            Label::Atelectasis => ["lobar collapse", "atelectasis"],
            Label::Device => ["support device", "tube or catheter"],
        })
        .map(|names| names[rng.below(2)])
        .collect();
    rng.shuffle(&mut names);
    match names[..] {
        [first, second, ..] if rng.chance(0.4) => Some(format!("{first} or {second}")),
        [first, ..] => Some(first.to_string()),
        [] => None,
    }
}

/// What is not a finding but may be mentioned.
fn aside(plan: &Plan, age: f32, rng: &mut Rng) -> Option<String> {
    let mut all: Vec<String> = Vec::new();
    for distractor in &plan.distractors {
        let template = match distractor {
            Distractor::Nipples => "{small |}bilateral nipple shadows {project over the lower zones|are noted}",
            Distractor::Callus { side, rib } => {
                let (side, rib) = (side.name(), ordinal(rib + 1));
                all.push(fill(
                    rng,
                    &format!("{{old|healed}} {{{side} {rib} rib fracture|fracture of the {side} {rib} rib}}"),
                ));
                continue;
            }
            Distractor::Calcification { side, .. } => {
                let side = side.name();
                all.push(fill(
                    rng,
                    &format!(
                        "{{calcified granuloma in the {side} lung|{side} calcified lymph node}} {{, benign|is noted|}}"
                    ),
                ));
                continue;
            }
            Distractor::SkinFold { side, .. } => {
                all.push(format!("skin fold over the {} hemithorax", side.name()));
                continue;
            }
            Distractor::Leads => "{overlying |external |}{monitoring|ECG} {leads|electrodes} {are noted|}",
            Distractor::SternalWires => "{median |}sternotomy wires {are intact|are noted|in place}",
            Distractor::Spondylosis => "{mild |moderate |}degenerative changes {of|in} the {thoracic |}spine",
        };
        all.push(fill(rng, template));
    }
    if age > 65.0 {
        all.push(fill(rng, "{the |}{aorta|thoracic aorta} is {tortuous|unfolded|tortuous and calcified}"));
    }
    rng.shuffle(&mut all);
    let asked = rng.chance(0.2);
    all.pop().filter(|_| asked).map(|text| text.replace(" ,", ","))
}

fn ordinal(n: usize) -> &'static str {
    ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh"]
        [(n - 1).min(10)]
}

/// The words for a side as an adjective; both sides give "bilateral".
fn lateral(side: Option<Side>) -> &'static str {
    side.map_or("bilateral", Side::name)
}

/// A finding as a noun phrase.
fn phrase(finding: &Planned, rng: &mut Rng) -> String {
    let degree = |words: [&'static str; 3]| words[finding.severity as usize];
    let side = lateral(finding.side);
    let template = match finding.label {
        Label::Cardiomegaly => {
            let how = degree(["{mild|slight|borderline}", "{moderate|}", "{severe|marked|gross}"]);
            let how_ly = degree(["{mildly|slightly}", "{moderately|}", "{severely|markedly|grossly}"]);
            let forms = [
                format!("{how} cardiomegaly"),
                format!("{how} cardiomegaly"),
                format!("{how_ly} enlarged {{cardiac silhouette|heart|heart shadow|cardiomediastinal silhouette}}"),
                format!("{how} enlargement of the {{heart|cardiac silhouette|cardiac shadow}}"),
                format!("{how} cardiac enlargement {{with increased cardiothoracic ratio|}}"),
                "increased {cardiothoracic ratio|transverse diameter of the heart}".to_string(),
            ];
            forms[rng.below(forms.len())].clone()
        }
        Label::Effusion => {
            let size = degree(["{small|trace|tiny|minimal}", "{moderate|moderate-sized|}", "{large|massive|sizeable}"]);
            let plural = if finding.side.is_none() { "s" } else { "" };
            let angle = if finding.side.is_none() { "angles" } else { "angle" };
            let sign = match finding.severity {
                Severity::Mild => format!("with blunting of the costophrenic {angle}"),
                Severity::Moderate => "{layering at the base|with a meniscus|obscuring the hemidiaphragm}".to_string(),
                Severity::Severe => {
                    "{opacifying the lower hemithorax|with compression of the adjacent lung}".to_string()
                }
            };
            let forms = [
                format!("{size} {side} pleural effusion{plural}"),
                format!("{size} {side} pleural effusion{plural} {sign}"),
                format!("{size} {side} effusion{plural}"),
                format!("{side} pleural fluid, {{small|modest}} in amount"),
                format!("{side} pleural effusion{plural}, {size}"),
                format!("blunted {side} costophrenic {angle} from {{pleural fluid|an effusion|fluid}}"),
            ];
            let form = match finding.severity {
                Severity::Mild => [0, 1, 2, 3, 4, 5][rng.below(6)],
                _ => [0, 1, 2, 1][rng.below(4)],
            };
            forms[form].clone()
        }
        Label::Consolidation => {
            let how = degree(["{subtle|faint|hazy|patchy}", "{patchy|ill-defined|}", "{dense|extensive|confluent}"]);
            let place = place(finding, rng);
            let forms = [
                format!("{how} {place} {{consolidation|airspace consolidation|airspace opacity|airspace disease}}"),
                format!("{how} {{consolidation|airspace opacity|opacification}} in the {place}"),
                format!(
                    "{how} {{consolidation|infiltrate}} in the {place} {{with air bronchograms|suspicious for pneumonia|concerning for infection}}"
                ),
                format!(
                    "{place} {{consolidation|airspace disease|infiltrate}} {{with air bronchograms|compatible with pneumonia|}}"
                ),
            ];
            // "bilateral" is an adjective only.
            let form = if finding.side.is_none() { [0, 3][rng.below(2)] } else { rng.below(4) };
            forms[form].clone()
        }
        Label::Pneumothorax => {
            let size = degree([
                "{small|tiny|subtle|apical|small apical}",
                "{moderate|moderate-sized|}",
                "{large|sizeable|extensive}",
            ]);
            let sign = degree([
                "{at the apex|with a thin apical pleural line|}",
                "{with a visible visceral pleural line|with the pleural line displaced from the chest wall|}",
                "{with collapse of the lung|with marked lung retraction|with the lung retracted towards the hilum}",
            ]);
            let forms = [
                format!("{size} {side} pneumothorax"),
                format!("{size} {side} pneumothorax {sign}"),
                format!("{size} {side}-sided pneumothorax"),
                format!("{size} pneumothorax on the {side}"),
            ];
            forms[rng.below(4)].clone()
        }
        Label::Nodule => {
            let radius = finding
                .shapes
                .iter()
                .map(|shape| if let Shape::Round { radius, .. } = shape { *radius } else { 0.0 })
                .fold(0.0, f32::max);
            let size = (radius * 20.0 + 0.5) as u32;
            let how = degree([
                "{small|subtle|faint|tiny}",
                "{well-defined|rounded|well-circumscribed|solitary}",
                "{large|dominant|well-defined}",
            ]);
            let place = place(finding, rng);
            if finding.shapes.len() > 1 {
                let forms = [
                    format!("multiple {{pulmonary|lung}} nodules, {{the largest|up to}} {size} mm"),
                    format!("{{several|multiple|scattered}} {side} {{pulmonary |lung |}}nodules"),
                    format!(
                        "{} {{nodular opacities|nodules}} {{suspicious for metastases|}}",
                        one(rng, &["multiple", "several"])
                    ),
                ];
                forms[rng.below(3)].clone()
            } else {
                let forms = [
                    format!("{size} mm nodule in the {place}"),
                    format!("{how} {{nodule|pulmonary nodule|lung nodule|nodular opacity}} in the {place}"),
                    format!("{how} nodule projecting over the {place}"),
                    format!("{how} {place} nodule {{|measuring {size} mm}}"),
                ];
                forms[rng.below(4)].clone()
            }
        }
        Label::Atelectasis => match finding.shapes.first() {
            Some(Shape::Collapse { side, zone, .. }) => {
                let (side, zone) = (side.name(), if *zone == Zone::Upper { "upper" } else { "lower" });
                let how = degree(["partial", "{partial|}", "{complete|near complete|}"]);
                let forms = [
                    format!("{how} {side} {zone} lobe {{collapse|atelectasis}}"),
                    format!("{how} {{collapse|atelectasis}} of the {side} {zone} lobe {{with volume loss|}}"),
                    format!(
                        "{side} {zone} lobe atelectasis with {{volume loss|elevation of the hemidiaphragm|mediastinal shift}}"
                    ),
                ];
                forms[rng.below(3)].clone()
            }
            _ => {
                let how = degree([
                    "{subtle|minor|mild|minimal}",
                    "{linear|plate-like|discoid|}",
                    "{prominent linear|multiple bands of|thick plate-like}",
                ]);
                let base = if finding.side.is_none() {
                    "lung bases".to_string()
                } else {
                    format!("{side} {{base|lung base}}")
                };
                let forms = [
                    format!("{how} {side} {{basal|basilar|lower zone}} atelectasis"),
                    format!("{how} atelectasis {{at|in}} the {base}"),
                    format!("{side} {{subsegmental|plate-like|linear|bandlike}} atelectasis"),
                    format!(
                        "{{linear|band-like|plate-like}} {{opacity|density}} at the {base} {{consistent with|representing}} atelectasis"
                    ),
                ];
                forms[rng.below(4)].clone()
            }
        },
        Label::Device => {
            let parts: Vec<String> = finding.shapes.iter().filter_map(|shape| device(shape, rng)).collect();
            let joint = [" and ", " with ", " and a "][rng.below(2)];
            parts.join(joint)
        }
    };
    fill(rng, &template)
}

/// Where in the lungs a finding lies, as a noun without its article.
fn place(finding: &Planned, rng: &mut Rng) -> String {
    let zone = finding.shapes.iter().find_map(|shape| match shape {
        Shape::Filled { zone, .. } | Shape::Round { zone, .. } => Some(*zone),
        _ => None,
    });
    let (Some(side), Some(zone)) = (finding.side, zone) else {
        return "bilateral".to_string();
    };
    let lobe = match (zone, side) {
        (Zone::Upper, _) => Some("upper lobe"),
        (Zone::Middle, Side::Right) => Some("middle lobe"),
        (Zone::Middle, Side::Left) => None,
        (Zone::Lower, _) => Some("lower lobe"),
    };
    match lobe {
        Some(lobe) if rng.chance(0.6) => format!("{} {lobe}", side.name()),
        _ => format!("{} {} {}", side.name(), zone.name(), one(rng, &["zone", "lung", "lung zone", "lung field"])),
    }
}

/// A device as a noun phrase.
fn device(shape: &Shape, rng: &mut Rng) -> Option<String> {
    let Shape::Device(device) = shape else { return None };
    let text = match *device {
        Device::Endotracheal { above } => {
            let above = (above + 0.5) as u32;
            format!(
                "{{endotracheal tube|ET tube}} {{|in place|with tip {above} cm above the carina|terminating above the carina|in satisfactory position}}"
            )
        }
        Device::Gastric { .. } => {
            "{nasogastric tube|enteric tube|NG tube} {|below the diaphragm|with tip in the stomach|coursing into the stomach}".into()
        }
        Device::Central { side, route } => {
            let side = side.name();
            let what = match route {
                Route::Jugular => "{internal jugular central venous catheter|jugular central line|IJ line}",
                Route::Subclavian => "{subclavian central venous catheter|subclavian line|subclavian catheter}",
                Route::Peripheral => "{PICC line|PICC|peripherally inserted central catheter}",
                Route::Port => "{chest port catheter|port-a-cath|implanted port catheter}",
            };
            format!("{side} {what} {{|with tip in the SVC|terminating in the superior vena cava|in place|with tip at the cavoatrial junction}}")
        }
        Device::Pacemaker { side, leads, .. } => {
            let (side, number, wires) =
                if leads == 1 { (side.name(), "single-lead", "lead") } else { (side.name(), "dual-lead", "leads") };
            format!("{side} {{chest wall |pectoral |}}{{pacemaker|cardiac pacemaker|{number} pacemaker|pacing device}} {{|with {wires} in place|in situ|with intact {wires}}}")
        }
        Device::ChestTube { side, .. } => {
            let side = side.name();
            format!("{side} {{chest tube|chest drain|thoracostomy tube|intercostal drain}} {{|in place|in situ|in position}}")
        }
    };
    Some(fill(rng, &text))
}
