"""What the operator pages say, in English and Chinese, and how they write times.

Sentences that the trainer recorded (a run's reason, the gate's verdict) are shown as they were written.
The language is the one that the person chose on the chat page (`words.language_of`).
"""

# ruff: noqa: RUF001  (Chinese punctuation is meant)

from datetime import datetime
from zoneinfo import ZoneInfo

WORDS: dict[str, tuple[str, str]] = {
    # The frame.
    "title": ("Operate", "运维"),
    "to_chat": ("Back to the chat", "返回聊天"),
    "overview": ("Overview", "概览"),
    "learning": ("Learning", "学习"),
    "versions": ("Versions", "版本"),
    "schedule": ("Schedule", "计划"),
    "not_operator": (
        "This page is for operators - sign in as one.",
        "此页面仅供运维人员使用 - 请以运维身份登录。",
    ),
    # What serves.
    "serving": ("Serving now", "当前版本"),
    "since": ("since {at}", "自 {at} 起"),
    "base_version": ("the base model, before any ranking", "基础模型，尚未学习任何排序"),
    "learned_from": ("learned from {n} rankings", "学习了 {n} 条排序"),
    "learned_from_1": ("learned from 1 ranking", "学习了 1 条排序"),
    "parent": ("made from {parent}", "源自 {parent}"),
    "why": ("Why it serves", "为何使用它"),
    # A refresh.
    "refresh": ("Refresh", "训练"),
    "running": ("Learning", "正在学习"),
    "idle": ("No refresh is running.", "当前没有训练。"),
    "requested": (
        "A refresh is asked for; it starts when the trainer next looks, within a minute.",
        "已请求训练；训练进程将在一分钟内开始。",
    ),
    "requested_no_trainer": (
        "A refresh is asked for. This server starts no trainer (--no-trainer) - run `trainer watch`.",
        "已请求训练。本服务器未启动训练进程（--no-trainer）- 请运行 `trainer watch`。",
    ),
    "left": ("about {time} left", "约剩 {time}"),
    "no_eta": ("time left not known yet", "剩余时间未知"),
    "cancelling": ("Cancelling at the next step ...", "将在下一步取消……"),
    "new_rankings": (
        "{n} new rankings; a scheduled refresh needs {need}.",
        "{n} 条新排序；定时训练需要 {need} 条。",
    ),
    "new_rankings_1": (
        "1 new ranking; a scheduled refresh needs {need}.",
        "1 条新排序；定时训练需要 {need} 条。",
    ),
    "last_run": ("Last run", "上次训练"),
    "refresh_now": ("Refresh now", "立即训练"),
    "cancel": ("Cancel the refresh", "取消训练"),
    "cancel_asked": ("The refresh stops at its next step.", "训练将在下一步停止。"),
    "nothing_to_cancel": (
        "No refresh is running or asked for - there is nothing to cancel.",
        "没有正在运行或已请求的训练 - 无可取消。",
    ),
    "request_taken": ("Asked for a refresh.", "已请求训练。"),
    "request_withdrawn": ("The request is withdrawn.", "已撤回请求。"),
    # Runs.
    "runs": ("Runs", "训练记录"),
    "run": ("Run", "训练"),
    "state": ("State", "状态"),
    "started": ("Started", "开始"),
    "took": ("Took", "用时"),
    "outcome": ("Outcome", "结果"),
    "version": ("Version", "版本"),
    "no_runs": (
        "No run yet. Rank some replies, then press Refresh now or wait for the schedule.",
        "尚无训练。先给一些回复排序，再按“立即训练”或等待计划时间。",
    ),
    "state_running": ("running", "进行中"),
    "state_published": ("published", "已发布"),
    "state_refused": ("refused", "被拒绝"),
    "state_nothing_to_learn": ("nothing to learn", "没有可学内容"),
    "state_failed": ("failed", "失败"),
    "state_cancelled": ("cancelled", "已取消"),
    "state_interrupted": ("interrupted", "中断"),
    "stage_snapshot": ("Reading the rankings", "读取排序"),
    "stage_reference": ("Hearing the model as it is", "采样当前模型"),
    "stage_judge": ("Training the judge", "训练评审模型"),
    "stage_reward": ("Learning what people prefer", "学习人们的偏好"),
    "stage_ppo": ("Practising", "练习"),
    "stage_gate": ("Being judged", "评审"),
    "stage_publish": ("Publishing", "发布"),
    "stage_starting": ("Starting", "启动"),
    "stage_demonstrations": ("Reading the demonstrations", "读取示范"),
    "stage_sft": ("Imitating what people wrote", "模仿人们写的回复"),
    # One run.
    "all_runs": ("All runs", "全部训练"),
    "run_which": ("Which run", "选择训练"),
    "newest_run": ("The newest run", "最新一次训练"),
    "asked_manual": ("Asked for by hand", "手动请求"),
    "asked_sft": ("Fine-tuning on demonstrations", "示范微调"),
    "asked_reward": ("Reward models alone", "仅训练奖励模型"),
    "started_at": ("started {at}", "开始于 {at}"),
    "running_for": ("running for {time}", "已进行 {time}"),
    "took_in_all": ("took {time}", "用时 {time}"),
    "no_figures": ("This run measured nothing.", "此次训练没有测量数据。"),
    "no_figures_yet": (
        "Figures appear here as soon as the first are measured.",
        "测得第一批数据后将显示在这里。",
    ),
    "what_happened": ("What happened", "过程"),
    "lesson": ("It learned from {n} rankings by {people}.", "学习了 {people}的 {n} 条排序。"),
    "lesson_1": ("It learned from 1 ranking by {people}.", "学习了 {people}的 1 条排序。"),
    "counted_people": ("{n} people", "{n} 人"),
    "counted_people_1": ("1 person", "1 人"),
    "lesson_parts": (
        "{own} rankings taught the reward models; {other}, of other conversations, taught the judge.",
        "{own} 条排序用于奖励模型；另外对话的 {other} 条用于评审模型。",
    ),
    "began_with": (
        "It began with {parent}, from which KL is measured.",
        "从 {parent} 开始，KL 以它为参照。",
    ),
    "began_near": (
        "It began with {parent} and stayed near {reference}, from which KL is measured.",
        "从 {parent} 开始，并保持接近 {reference}，KL 以它为参照。",
    ),
    "algorithm_ppo": ("PPO", "PPO"),
    "algorithm_bestofk": ("Best-of-K", "Best-of-K"),
    "kept_update": (
        "{algorithm} did {updates} updates; the judge liked the policy after {best} of them best.",
        "{algorithm} 共更新 {updates} 次；评审模型最认可第 {best} 次更新后的策略。",
    ),
    "kept_none": (
        "{algorithm} did {updates} updates, and the judge liked none better than the start.",
        "{algorithm} 共更新 {updates} 次，评审模型认为没有一次优于起点。",
    ),
    "stopped": ("It stopped early: {why}", "提前停止：{why}"),
    "imitated": (
        "It imitated {n} demonstrations by {people}.",
        "模仿了 {people}的 {n} 条示范。",
    ),
    "left_out": ("{n} of them were too long and were left out.", "其中 {n} 条过长，未使用。"),
    "left_out_1": ("1 of them was too long and was left out.", "其中 1 条过长，未使用。"),
    "kept_pass": ("Pass {best} over them was kept.", "保留了第 {best} 遍的结果。"),
    "stopped_early": (
        "It stopped early: the held-out loss fell no more.",
        "提前停止：留出数据上的损失不再下降。",
    ),
    "peak_memory": ("Its peak memory was {gib} GiB.", "内存峰值为 {gib} GiB。"),
    "replies_at": ("Replies at update {update}", "第 {update} 次更新时的回复"),
    "seconds": ("Time by stage, {time} in all", "各阶段用时，共 {time}"),
    # One run: practice.
    "practice": ("Practice", "练习"),
    "chart_against_kl": ("Score over distance from the reference", "得分与偏离参照的距离"),
    "chart_by_update": ("Score by update", "逐次更新的得分"),
    "chart_kl": ("KL", "KL"),
    "chart_kl_axis": ("nats a reply", "每条回复，nat"),
    "chart_length": ("Reply length", "回复长度"),
    "chart_length_axis": ("tokens", "词元"),
    "chart_disagreement": ("Disagreement of the reward models", "奖励模型之间的分歧"),
    "chart_disagreement_axis": ("standard deviation of the score", "得分的标准差"),
    "chart_variety": ("Ends and variety", "结束与多样性"),
    "chart_variety_axis": ("share", "比例"),
    "chart_entropy": ("Entropy", "熵"),
    "chart_entropy_axis": ("nats a token", "每词元，nat"),
    "chart_imitation": ("Loss on demonstrations", "示范上的损失"),
    "axis_sqrt_kl": ("√KL from the reference (√nats a reply)", "与参照的 √KL（每条回复，√nat）"),
    "axis_score": ("in units of the reference's spread", "以参照得分的标准差为单位"),
    "axis_loss": ("nats a token", "每词元，nat"),
    "line_judge": ("judge, which training never sees", "评审模型（不参与训练）"),
    "line_score": ("reward models", "奖励模型"),
    "line_kl": ("from the reference", "与参照"),
    "line_start_kl": ("from tonight's start", "与本次起点"),
    "line_length": ("mean length", "平均长度"),
    "line_disagreement": ("mean over replies", "回复平均值"),
    "line_eos_rate": ("replies that end by themselves", "自行结束的回复"),
    "line_distinct_2": ("distinct-2", "distinct-2"),
    "line_entropy": ("mean entropy", "平均熵"),
    "line_loss": ("training", "训练"),
    "line_held_out_loss": ("held out", "留出数据"),
    "limit_kl": ("stops at {nats}", "达到 {nats} 时停止"),
    "mark_published": ("published: {update}", "已发布：{update}"),
    "mark_kept": ("kept: {update}", "保留：{update}"),
    # One run: the reward report.
    "reward_report": ("Reward report", "奖励模型报告"),
    "reward_note": (
        "Each model is examined on conversations that only the other one learned from.",
        "每个模型都在只有另一模型学习过的对话上检验。",
    ),
    "model_reward": ("Reward models", "奖励模型"),
    "model_judge": ("Judge", "评审模型"),
    "accuracy": ("Accuracy", "准确率"),
    "always_longest": ("The longest always wins", "总选最长"),
    "always_first_shown": ("The first shown always wins", "总选最先显示"),
    "pairs": ("{n} pairs", "{n} 对"),
    "pairs_1": ("1 pair", "1 对"),
    "reliability": ("Reliability", "可靠性"),
    "axis_confidence": ("how sure it is of a pair", "对一对回复的把握"),
    "axis_right": ("share that came out so", "实际如此的比例"),
    "bin": ("{sure} sure, {right} right, {n} pairs", "把握 {sure}，正确 {right}，{n} 对"),
    "bin_1": ("{sure} sure, {right} right, 1 pair", "把握 {sure}，正确 {right}，1 对"),
    "figure": ("Figure", "指标"),
    "of": ("of {n}", "共 {n}"),
    "figure_kendall_tau": ("Kendall's tau", "Kendall τ"),
    "figure_kendall_tau_note": (
        "order of three replies and more; 1 is the same order",
        "三个及以上回复的顺序；1 为完全一致",
    ),
    "figure_ece": ("Calibration error (ECE)", "校准误差（ECE）"),
    "figure_ece_note": ("mean gap of the reliability plot; 0 is best", "可靠性图的平均差距；0 最佳"),
    "figure_score_length_correlation": ("Score and length", "得分与长度"),
    "figure_score_length_correlation_note": (
        "correlation; near ±1 it measures little else",
        "相关系数；接近 ±1 时几乎只在衡量长度",
    ),
    "figure_disagreement": ("Disagreement", "分歧"),
    "figure_disagreement_note": ("of the reward models about a reply", "各奖励模型对同一回复"),
    "figure_paraphrase_flip_rate": ("Paraphrase flips", "改述翻转"),
    "figure_paraphrase_flip_rate_note": (
        "prompts whose rewording turns the order of two replies",
        "改述提示后两个回复顺序翻转的比例",
    ),
    "figure_ties": ("Ties", "平局"),
    "figure_ties_note": ("pairs that people left undecided", "人们未分胜负的回复对"),
    "by_person": ("Accuracy by person", "按人员的准确率"),
    "by_source": ("Accuracy by source", "按来源的准确率"),
    "source_human": ("people", "人"),
    "source_simulated": ("simulated raters", "模拟评分者"),
    "source_imported": ("imports", "导入"),
    # One run: the gate.
    "gate_report": ("Gate", "评审"),
    "vetoes": ("Why it was refused", "拒绝原因"),
    "win_rate": ("The judge prefers the candidate", "评审模型更认可候选版本"),
    "judge_accuracy": ("The judge agrees with people", "评审模型与人一致"),
    "side_by_side": ("Candidate and current", "候选与当前"),
    "side_candidate": ("Candidate", "候选"),
    "side_current": ("Current", "当前"),
    "measure_length": ("Reply length, tokens", "回复长度（词元）"),
    "measure_eos_rate": ("Replies that end by themselves", "自行结束的回复"),
    "measure_empty_rate": ("Empty replies", "空回复"),
    "measure_duplicate_rate": ("Replies that repeat another's", "重复其他回复"),
    "measure_distinct_2": ("Distinct word pairs (distinct-2)", "不同词对（distinct-2）"),
    "measure_refusal_rate": ("Refusals of harmless prompts", "对无害提示的拒绝"),
    "measure_repetition": ("Repetition within a reply", "回复内的重复"),
    "measure_perplexity": ("Perplexity on a fixed text", "固定文本上的困惑度"),
    "measure_capability": ("Short questions answered right", "短题答对"),
    "sampled_at": (
        "Sampled at temperature {temperature}, at most {limit} new tokens.",
        "采样温度 {temperature}，最多 {limit} 个新词元。",
    ),
    "samples": ("Replies to the same prompts", "同一提示的回复"),
    "more_samples": ("{n} more", "其余 {n} 条"),
    "judge_prefers": ("the judge's choice", "评审模型的选择"),
    "empty_reply": ("(empty)", "（空）"),
    # Curves.
    "curves": ("Curves", "曲线"),
    "curves_note": (
        "The last {n} runs that practised, update by update.",
        "最近 {n} 次训练，逐次更新。",
    ),
    "no_curves": ("Curves appear with the first run.", "第一次训练后将显示曲线。"),
    "curve_score": ("Score by the reward model", "奖励模型得分"),
    "curve_judge": ("Score by the judge, which training never sees", "评审模型得分（不参与训练）"),
    "curve_kl": ("KL from the start, nats a reply", "与起点的 KL（每条回复，nat）"),
    "curve_accuracy": ("Reward model's accuracy on pairs", "奖励模型的成对准确率"),
    "curve_length": ("Reply length, tokens", "回复长度（词元）"),
    "curve_entropy": ("Entropy, nats a token", "熵（每词元，nat）"),
    "update": ("update", "更新"),
    "step": ("step", "步"),
    # Versions.
    "no_versions": (
        "Only the base model so far. The first refresh that passes the gate appears here.",
        "目前只有基础模型。第一个通过评审的版本会显示在这里。",
    ),
    "status": ("Gate", "评审"),
    "status_accepted": ("passed", "通过"),
    "status_refused": ("refused", "拒绝"),
    "status_candidate": ("not judged", "未评审"),
    "rankings": ("Rankings", "排序数"),
    "made": ("Made", "生成于"),
    "people": ("People, against others", "人们的比较"),
    "never_compared": ("never compared", "从未比较"),
    "beat": (
        "against {other}: {wins} won, {losses} lost, {ties} tied",
        "对 {other}：{wins} 胜，{losses} 负，{ties} 平",
    ),
    "compared_note": (
        "Versions meet when one turn holds replies of both, for example after a regenerate across a swap.",
        "当同一轮对话包含两个版本的回复时（例如换版后重新生成），它们才会被比较。",
    ),
    "report": ("Report", "报告"),
    "parent_of": ("Made from", "源自"),
    "published_by": ("Published by hand by {name}.", "由 {name} 手动发布。"),
    "serves": ("serves", "使用中"),
    "rollback": ("Roll back", "回滚"),
    "rollback_to": ("Roll back to {name}", "回滚到 {name}"),
    "rollback_none": ("Nothing to roll back to", "无可回滚的版本"),
    "publish": ("Publish this version", "发布此版本"),
    "publish_which": ("Version to publish", "要发布的版本"),
    "change": ("Change what serves", "更换版本"),
    "arm_rollback": (
        "Roll back from {current} to {target}? New turns get {target}; turns in flight finish on {current}.",
        "从 {current} 回滚到 {target}？新的对话使用 {target}；进行中的回复仍由 {current} 完成。",
    ),
    "arm_publish": (
        "Publish {target} for {current}? New turns get {target}; turns in flight finish on {current}.",
        "用 {target} 取代 {current}？新的对话使用 {target}；进行中的回复仍由 {current} 完成。",
    ),
    "confirm_rollback": ("Yes, roll back", "确认回滚"),
    "confirm_publish": ("Yes, publish", "确认发布"),
    "keep": ("No, keep {current}", "不，保留 {current}"),
    "serves_now": ("{name} serves from the next turn on.", "从下一轮起使用 {name}。"),
    "moved_on": (
        "Meanwhile {current} serves - look at the versions and try again.",
        "现在使用的是 {current} - 请查看版本后重试。",
    ),
    "choose_first": ("No version is chosen - choose one to publish.", "未选择版本 - 请先选择要发布的版本。"),
    # Schedule.
    "cron": ("Cron: minute, hour, day, month, weekday", "Cron：分 时 日 月 星期"),
    "cron_info": (
        "30 3 * * * is every day at 03:30, 30 3 * * mon-fri on weekdays.",
        "30 3 * * * 为每天 03:30，30 3 * * mon-fri 为工作日。",
    ),
    "zone": ("Time zone", "时区"),
    "minimum": ("New rankings needed", "所需新排序数"),
    "minimum_info": ("A slot with fewer is passed over.", "少于此数时跳过。"),
    "paused": ("Paused", "暂停"),
    "paused_info": ("No scheduled refresh; Refresh now still works.", "不按计划训练；仍可立即训练。"),
    "save": ("Save the schedule", "保存计划"),
    "saved": ("The schedule is saved.", "计划已保存。"),
    "next_times": ("Next times", "接下来的时间"),
    "is_paused": ("The schedule is paused.", "计划已暂停。"),
    "next_wait": (
        "The trainer has not looked at this schedule yet; it writes the next times here.",
        "训练进程尚未读取此计划；读取后会在此写出时间。",
    ),
    "no_zone": (
        "There is no time zone {zone!r} - choose one of the list.",
        "没有时区 {zone!r} - 请从列表中选择。",
    ),
    "no_minimum": (
        "A refresh needs at least 1 new ranking - give a whole number.",
        "训练至少需要 1 条新排序 - 请填写整数。",
    ),
    "no_cron": (
        "The cron {cron!r} does not have five parts - write minute, hour, day, month, weekday.",
        "Cron {cron!r} 不是五个部分 - 请写：分 时 日 月 星期。",
    ),
    "when": ("When", "时间"),
    "who": ("Who", "人员"),
    "what": ("What", "操作"),
    "detail": ("Detail", "详情"),
    "log": ("What operators did", "操作记录"),
    "no_log": ("Nothing yet.", "暂无。"),
}


def say(key: str, language: str, **values: object) -> str:
    """The words for `key` in `language` ("en" or "zh-CN"). With `n=1`, its `_1` form if it has one."""
    if values.get("n") == 1 and f"{key}_1" in WORDS:
        key = f"{key}_1"
    return WORDS[key][1 if language.startswith("zh") else 0].format(**values)


def known(key: str, language: str, otherwise: str) -> str:
    """The words for `key` where we have some, else `otherwise`: stages and states may be new to us."""
    return say(key, language) if key in WORDS else otherwise


def moment(at: float, zone: str) -> str:
    """A time as an operator reads it: 2026-11-21 03:30, in the schedule's zone."""
    return datetime.fromtimestamp(at, ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M")


def duration(seconds: float, language: str) -> str:
    """A length of time, rounded to what matters: 40 s, 12 min, 1 h 05 min."""
    whole = max(0, round(seconds))
    units = (" s", " min", " h") if not language.startswith("zh") else (" 秒", " 分钟", " 小时")
    if whole < 60:
        return f"{whole}{units[0]}"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes}{units[1]}"
    return f"{minutes // 60}{units[2]} {minutes % 60:02d}{units[1]}"
