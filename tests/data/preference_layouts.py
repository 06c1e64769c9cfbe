"""One row of each published layout of comparisons, rankings, scores and steps, with its record."""

from jaxalign.data.records import Comparison, Ranking, Rating, Stepwise
from tests.data.layout_parts import FUNCTION, GO, HI, RATED, TOOLS, A, Layout, S, U

PREFERENCES = [
    Layout(
        "PKU-SafeRLHF",
        "pku_saferlhf",
        {"prompt": "How do locks work?", "response_0": "With pins.", "response_1": "Ask a smith."}
        | {"is_response_0_safe": False, "is_response_1_safe": True}
        | {"better_response_id": 0, "safer_response_id": 1},
        Comparison("How do locks work?", "With pins.", "Ask a smith."),
        unread=("is_response_0_safe", "is_response_1_safe", "safer_response_id"),
    ),
    Layout(
        "prompt, chosen, rejected (rm-static, openai_summarize_comparisons)",
        "preference",
        {
            "prompt": "\n\nHuman: Hi\n\nAssistant:",
            "response": " Hello",
            "chosen": " Hello",
            "rejected": " Go",
        },
        Comparison("\n\nHuman: Hi\n\nAssistant:", " Hello", " Go"),
        unread=("response",),
    ),
    Layout(
        "UltraFeedback binarized, UltraMedical-Preference",
        "preference",
        {"prompt": "Hi", "prompt_id": "q1", "chosen": HI, "rejected": GO, "messages": HI}
        | {"score_chosen": 8.5, "score_rejected": 6.0},
        Comparison((U("Hi"),), "Hello", "Go", 2.5),
        unread=("prompt_id",),
    ),
    Layout(
        "UltraFeedback cleaned (argilla)",
        "preference",
        {"source": "evol", "prompt": "Hi", "chosen": HI, "chosen-rating": 5.0, "chosen-model": "a"}
        | {"rejected": GO, "rejected-rating": 3.0, "rejected-model": "b"},
        Comparison((U("Hi"),), "Hello", "Go", 2.0),
        unread=("source", "chosen-model", "rejected-model"),
    ),
    Layout(
        "TRL conversational preference",
        "preference",
        {"prompt": [{"role": "system", "content": "Be kind."}, HI[0]], "chosen": HI[1:], "rejected": GO[1:]},
        Comparison((S("Be kind."), U("Hi")), "Hello", "Go"),
    ),
    Layout(
        "system prompt, chosen and rejected dialogues",
        "preference",
        {"prompt": [{"role": "system", "content": "Be kind."}], "chosen": HI, "rejected": GO},
        Comparison((S("Be kind."), U("Hi")), "Hello", "Go"),
    ),
    Layout(
        "chosen and rejected dialogues",
        "preference_chat",
        {"chosen": HI, "rejected": GO},
        Comparison((U("Hi"),), "Hello", "Go"),
    ),
    Layout(
        "HH-RLHF",
        "hh_rlhf",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name?\n\nAssistant: Ann",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Name?\n\nAssistant: No",
        },
        Comparison((U("Hi"), A("Hello"), U("Name?")), "Ann", "No"),
    ),
    Layout(
        "ShareGPT preference (LLaMA-Factory)",
        "sharegpt_pair",
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "system": "Be kind.",
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "Go"},
        },
        Comparison((S("Be kind."), U("Hi")), "Hello", "Go"),
    ),
    Layout(
        "OpenAI preference",
        "openai_preference",
        {"input": {"messages": HI[:1], "tools": [FUNCTION], "parallel_tool_calls": True}}
        | {"preferred_output": HI[1:], "non_preferred_output": GO[1:]},
        Comparison((TOOLS, U("Hi")), "Hello", "Go"),
        unread=("input.parallel_tool_calls",),
    ),
    Layout(
        "messages with a rejected response (ms-swift)",
        "messages_and_rejected",
        {"messages": HI, "rejected_response": "Go"},
        Comparison((U("Hi"),), "Hello", "Go"),
    ),
    Layout(
        "Alpaca preference (LLaMA-Factory)",
        "instruction_pair",
        {"instruction": "Do", "input": "x", "chosen": "c", "rejected": "r", "history": [["a", "b"]]},
        Comparison((U("a"), A("b"), U("Do\n\nx")), "c", "r"),
    ),
    Layout(
        "Alpaca rankings (LLaMA-Factory, old)",
        "ranked_outputs",
        {"instruction": "Do", "input": "", "output": ["c", "r"]},
        Comparison("Do", "c", "r"),
    ),
    Layout(
        "Orca DPO pairs (Intel)",
        "question_pair",
        {"system": "Be kind.", "question": "Q", "chosen": "c", "rejected": "r"},
        Comparison((S("Be kind."), U("Q")), "c", "r"),
    ),
    Layout(
        "Orca DPO pairs (argilla)",
        "input_pair",
        {
            "system": "",
            "input": "Q",
            "chosen": "c",
            "rejected": "r",
            "generations": ["c", "r"],
            "order": ["A", "B"],
        }
        | {"labelling_model": "m", "rating": [9.0, 7.0], "rationale": "why", "status": "unchanged"}
        | {"original_chosen": "c", "original_rejected": "r", "chosen_score": 9.0, "in_gsm8k_train": False},
        Comparison("Q", "c", "r"),
        unread=("generations", "order", "labelling_model", "rating", "rationale", "status", "original_chosen")
        + ("original_rejected", "chosen_score", "in_gsm8k_train"),
    ),
    Layout(
        "Capybara DPO (argilla)",
        "preference",
        {"source": "s", "conversation": [{"input": "Hi", "output": "Hello"}], "prompt": "Hi", "chosen": HI}
        | {"rejected": GO, "rating_chosen": 5, "rating_rejected": 2, "chosen_model": "a", "turns": 1},
        Comparison((U("Hi"),), "Hello", "Go", 3.0),
        unread=("source", "chosen_model", "turns"),
    ),
    Layout(
        "PandaLM",
        "annotated_pair",
        {"instruction": "Do", "input": "", "response1": "a", "response2": "b"}
        | {"annotator1": 2, "annotator2": 0, "annotator3": 2},
        Comparison("Do", "b", "a"),
    ),
    Layout(
        "Auto-J pairs",
        "auto_j",
        {"scenario": "s", "label": 1, "prompt": "P", "response 1": "a", "response 2": "b"},
        Comparison("P", "b", "a"),
        unread=("scenario",),
    ),
    Layout(
        "AlpacaEval annotations",
        "alpaca_eval",
        {"instruction": "Do", "dataset": "d", "generator_1": "m", "output_1": "a", "generator_2": "n"}
        | {"output_2": "b", "annotator": "gpt4", "preference": 1.9},
        Comparison("Do", "b", "a"),
        unread=("dataset", "generator_1", "generator_2", "annotator"),
    ),
    Layout(
        "HelpSteer2 preference",
        "helpsteer2_preference",
        {
            "split": "train",
            "prompt": "Hi<extra_id_1>Assistant\nHello<extra_id_1>User\nName?",
            "response_1": "a",
        }
        | {"response_2": "b", "preference_strength": -2, "preference_statement": "s"},
        Comparison((U("Hi"), A("Hello"), U("Name?")), "a", "b", 2.0),
        unread=("split", "preference_statement"),
    ),
    Layout(
        "HelpSteer3 preference",
        "helpsteer3",
        {"domain": "general", "language": "english", "context": HI[:1], "response1": "a", "response2": "b"}
        | {"overall_preference": 3, "individual_preference": [{"score": 3, "reasoning": "r"}]},
        Comparison((U("Hi"),), "b", "a", 3.0),
        unread=("domain", "language", "individual_preference"),
    ),
    Layout(
        "SHP",
        "shp",
        {
            "post_id": "p",
            "domain": "d",
            "history": "Post",
            "human_ref_A": "a",
            "human_ref_B": "b",
            "labels": 0,
        }
        | {"score_A": 3, "score_B": 9, "score_ratio": 3.0, "upvote_ratio": 0.9},
        Comparison("Post", "b", "a"),
        unread=("post_id", "domain", "score_A", "score_B", "score_ratio", "upvote_ratio"),
    ),
    Layout(
        "WebGPT comparisons",
        "webgpt",
        {
            "question": {"dataset": "eli5", "id": "1", "full_text": "Why?"},
            "quotes_0": {"title": [], "extract": []},
        }
        | {"answer_0": "a", "tokens_0": {"prefix": [1], "completion": [2]}, "score_0": -0.5}
        | {"quotes_1": {"title": [], "extract": []}, "answer_1": "b", "tokens_1": None, "score_1": 0.5},
        Comparison("Why?", "b", "a", 1.0),
        unread=("quotes_0", "tokens_0", "quotes_1"),
    ),
    Layout(
        "summarize-from-feedback comparisons",
        "summarize_feedback",
        {"info": {"id": "1", "post": "Long.", "title": "T", "subreddit": "x", "site": None, "article": None}}
        | {
            "summaries": [
                {"text": " a", "policy": "p", "note": ""},
                {"text": " b", "policy": "q", "note": ""},
            ]
        }
        | {"choice": 1, "worker": "w", "batch": "b", "split": "train", "extra": {"confidence": 8}},
        Comparison("SUBREDDIT: r/x\n\nTITLE: T\n\nPOST: Long.\n\nTL;DR:", "b", "a"),
        unread=("worker", "batch", "split", "extra"),
    ),
    Layout(
        "Chatbot Arena conversations (33k)",
        "arena",
        {"question_id": "q", "model_a": "m", "model_b": "n", "winner": "model_b", "judge": "j", "turn": 1}
        | {"conversation_a": HI, "conversation_b": GO, "language": "English", "tstamp": 1.5},
        Comparison((U("Hi"),), "Go", "Hello"),
        unread=("question_id", "model_a", "model_b", "judge", "turn", "language", "tstamp"),
    ),
    Layout(
        "Chatbot Arena (55k)",
        "arena_columns",
        {
            "id": 1,
            "model_a": "m",
            "model_b": "n",
            "prompt": '["Hi", "Name?"]',
            "response_a": '["Hello", "Ann"]',
        }
        | {"response_b": '["Hello", "No"]', "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        Comparison((U("Hi"), A("Hello"), U("Name?")), "Ann", "No"),
        unread=("id", "model_a", "model_b"),
    ),
    Layout(
        "NeMo-Aligner DPO",
        "nemo_dpo",
        {"prompt": "<extra_id_0>System\nBe kind.\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n"}
        | {"chosen_response": "Hello\n<extra_id_1>", "rejected_response": "Go\n<extra_id_1>"}
        | {"chosen_reward": 4.0, "rejected_reward": 1.0},
        Comparison((S("Be kind."), U("Hi")), "Hello", "Go", 3.0),
    ),
]

SCORES = [
    Layout(
        "best of n, as text or token ids (lm-human-preferences)",
        "best_of_n",
        {"query": "Q", "sample0": "a", "sample1": "b", "sample2": "c", "sample3": "d", "best": 2},
        Ranking("Q", ("a", "b", "c", "d"), 2),
    ),
    Layout(
        "UltraFeedback (openbmb)",
        "ultrafeedback",
        {"source": "s", "instruction": "Do", "models": ["m", "n"], "correct_answers": ["None"]}
        | {
            "completions": [
                {"annotations": {"honesty": {"Rating": "4", "Rationale": "r"}}, "model": "m"}
                | {"principle": "p", "custom_system_prompt": "c", "response": "a", "critique": "k"}
                | {"overall_score": 7.0, "fine-grained_score": 4.25},
                {"annotations": {"honesty": {"Rating": "2", "Rationale": "r"}}, "model": "n"}
                | {"principle": "p", "custom_system_prompt": "c", "response": "b", "critique": "k"}
                | {"overall_score": 8.0, "fine-grained_score": 2.0},
            ]
        },
        Ranking("Do", ("a", "b"), 0, (4.25, 2.0)),
        unread=("source", "models", "correct_answers"),
    ),
    Layout(
        "Nectar",
        "nectar",
        {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "turns": 1, "num_responses": 2, "source": ["s"]}
        | {
            "answers": [
                {"answer": "a", "model": "m", "rank": 2.0},
                {"answer": "b", "model": "n", "rank": 1.0},
            ]
        },
        Ranking((U("Hi"),), ("a", "b"), 1, (-2.0, -1.0)),
        unread=("turns", "num_responses", "source"),
    ),
    Layout(
        "candidates with scores",
        "candidates",
        {"prompt": "P", "candidates": ["a", "b"], "scores": [0.25, 0.5]},
        Ranking("P", ("a", "b"), 1, (0.25, 0.5)),
    ),
    Layout(
        "scored conversations",
        "scored_conversation",
        {"conversation": HI, "meta_eval_score": 4.5, "score_reason": "ok"},
        Rating((U("Hi"),), "Hello", 4.5, None, "ok"),
    ),
    Layout(
        "HelpSteer, HelpSteer2",
        "helpsteer",
        {"prompt": "c#", "response": "A language."} | RATED,
        Rating("c#", "A language.", 3.0),
        unread=("correctness", "coherence", "complexity", "verbosity"),
    ),
    Layout(
        "steps with labels (TRL stepwise)",
        "stepwise",
        {"prompt": "P", "completions": ["a", "b", "c"], "labels": [True, 0, 0.25]},
        Stepwise("P", ("a", "b", "c"), (1.0, 0.0, 0.25)),
    ),
    Layout(
        "PRM800K",
        "prm800k",
        {"labeler": "l", "timestamp": "t", "generation": 9, "is_quality_control_question": False}
        | {"question": {"problem": "1+1?", "ground_truth_answer": "2"}}
        | {
            "label": {
                "steps": [
                    {
                        "completions": [{"text": "Add.", "rating": 0, "flagged": None}],
                        "human_completion": None,
                    }
                    | {"chosen_completion": 0},
                    {
                        "completions": [{"text": "No.", "rating": -1, "flagged": None}],
                        "human_completion": {"text": "So:"},
                    }
                    | {"chosen_completion": None},
                    {"completions": [{"text": "3.", "rating": -1, "flagged": None}], "human_completion": None}
                    | {"chosen_completion": None},
                ],
                "total_time": 1,
                "finish_reason": "found_error",
            }
        },
        Stepwise("1+1?", ("Add.", "So:", "3."), (1.0, 1.0, 0.0)),
        unread=("labeler", "timestamp", "generation", "is_quality_control_question"),
    ),
    Layout(
        "Math-Shepherd",
        "math_shepherd",
        {"input": "1+1? Step 1: Add. ки\nStep 2: The answer is: 3 ки", "task": "GSM8K"}
        | {"label": "1+1? Step 1: Add. +\nStep 2: The answer is: 3 -"},
        Stepwise("1+1?", ("Step 1: Add.", "Step 2: The answer is: 3"), (1.0, 0.0)),
        unread=("task",),
    ),
]
