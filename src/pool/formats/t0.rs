//! T0's data sets and the clusters of like tasks that its authors put them in (Sanh et al. 2022, figure 2).

/// Data sets as P3's file names begin, with their clusters.
const DATA_SETS: [(&str, &str); 62] = [
    ("adversarial_qa_dbert", "extractive QA"),
    ("adversarial_qa_dbidaf", "extractive QA"),
    ("adversarial_qa_droberta", "extractive QA"),
    ("ag_news", "topic classification"),
    ("ai2_arc", "closed-book QA"),
    ("amazon_polarity", "sentiment"),
    ("anli", "natural language inference"),
    ("app_reviews", "sentiment"),
    ("cnn_dailymail_3_0_0", "summarization"),
    ("common_gen", "structure to text"),
    ("commonsense_qa", "multiple-choice QA"),
    ("cos_e", "multiple-choice QA"),
    ("cosmos_qa", "multiple-choice QA"),
    ("dbpedia_14", "topic classification"),
    ("dream", "multiple-choice QA"),
    ("duorc_ParaphraseRC", "extractive QA"),
    ("duorc_SelfRC", "extractive QA"),
    ("gigaword", "summarization"),
    ("glue_mrpc", "paraphrase identification"),
    ("glue_qqp", "paraphrase identification"),
    ("hellaswag", "sentence completion"),
    ("imdb", "sentiment"),
    ("kilt_tasks_hotpotqa", "closed-book QA"),
    ("multi_news", "summarization"),
    ("openbookqa", "multiple-choice QA"),
    ("paws_labeled_final", "paraphrase identification"),
    ("paws_x", "paraphrase identification"),
    ("piqa", "multiple-choice QA"),
    ("qasc", "multiple-choice QA"),
    ("quail", "multiple-choice QA"),
    ("quarel", "multiple-choice QA"),
    ("quartz", "multiple-choice QA"),
    ("quoref", "extractive QA"),
    ("race", "multiple-choice QA"),
    ("ropes", "extractive QA"),
    ("rotten_tomatoes", "sentiment"),
    ("samsum", "summarization"),
    ("sciq", "multiple-choice QA"),
    ("social_i_qa", "multiple-choice QA"),
    ("squad_v2", "extractive QA"),
    ("story_cloze", "sentence completion"),
    ("super_glue_boolq", "multiple-choice QA"),
    ("super_glue_cb", "natural language inference"),
    ("super_glue_copa", "sentence completion"),
    ("super_glue_multirc", "multiple-choice QA"),
    ("super_glue_record", "extractive QA"),
    ("super_glue_rte", "natural language inference"),
    ("super_glue_wic", "word sense disambiguation"),
    ("super_glue_wsc", "coreference resolution"),
    ("trec", "topic classification"),
    ("trivia_qa", "closed-book QA"),
    ("web_questions", "closed-book QA"),
    ("wiki_bio", "structure to text"),
    ("wiki_hop_original", "multiple-choice QA"),
    ("wiki_qa", "closed-book QA"),
    ("winogrande", "coreference resolution"),
    ("wiqa", "multiple-choice QA"),
    ("xsum", "summarization"),
    ("yelp_review_full", "sentiment"),
    ("glue_mnli", "natural language inference"),
    ("glue_rte", "natural language inference"),
    ("glue_wnli", "natural language inference"),
];

/// A P3 file's name as data set and template (`glue_qqp_answer`), or the whole name where the data set is not known.
pub fn split(name: &str) -> (&str, Option<&str>) {
    let known =
        DATA_SETS.iter().find_map(|(set, _)| Some((*set, name.strip_prefix(set)?.strip_prefix('_')?)));
    known.map_or((name, None), |(set, template)| (set, Some(template)))
}

/// The cluster of the data set `task`, whose parts may be joined by `-`, `/` or `_`.
pub fn cluster(task: &str) -> Option<&'static str> {
    let task = task.replace(['-', '/', '.'], "_");
    let begins = |set: &str| task == set || task.strip_prefix(set).is_some_and(|rest| rest.starts_with('_'));
    DATA_SETS.iter().find(|(set, _)| begins(set)).map(|(_, cluster)| *cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_after_a_known_data_set() {
        assert_eq!(split("glue_qqp_answer"), ("glue_qqp", Some("answer")));
        assert_eq!(split("wiki_qa_Is_This_True_"), ("wiki_qa", Some("Is_This_True_")));
        assert_eq!(split("my_own_set"), ("my_own_set", None));
        assert_eq!(cluster("super_glue-rte"), Some("natural language inference"));
        assert_eq!(cluster("cnn_dailymail-3.0.0"), Some("summarization"));
        assert_eq!(cluster("animals"), None);
    }
}
