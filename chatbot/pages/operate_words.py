"""What the operator pages say, in English and Chinese, and how they write times.

Sentences that the trainer recorded (a run's reason, the gate's verdict) are shown as they were written.
The language is the one that the person chose on the chat page (`words.language_of`).
"""

# ruff: noqa: RUF001  (Chinese punctuation is meant)

from datetime import datetime
from zoneinfo import ZoneInfo

from chatbot.pages.operate_run_words import RUN_WORDS
from data.records import FEWEST_RANKINGS

WORDS: dict[str, tuple[str, str]] = {
    **RUN_WORDS,
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
    # The data: backups and downloads.
    "data": ("Data", "数据"),
    "last_backup": ("The last backup of the database was made at {at}.", "数据库上次备份于 {at}。"),
    "backups_kept": ("{n} are kept.", "保留 {n} 份。"),
    "backups_kept_1": ("1 is kept.", "保留 1 份。"),
    "downloads": (
        "Rankings and demonstrations that may teach, for other trainers:",
        "可用于训练的排名与示范，供其他训练器使用：",
    ),
    "no_backup": (
        "No backup yet: `trainer watch` makes one each day, the first as soon as it runs.",
        "尚无备份：`trainer watch` 每天备份一次，首次在其运行后立即进行。",
    ),
    "late_backup": (
        "No backup for more than two days - see that `trainer watch` runs, or run `python -m data backup`.",
        "已超过两天没有备份 - 请确认 `trainer watch` 正在运行，或运行 `python -m data backup`。",
    ),
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
    "stage_reference": ("Sampling the reference", "采样参照模型"),
    "stage_judge": ("Training the judge", "训练评审模型"),
    "stage_reward": ("Learning what people prefer", "学习人们的偏好"),
    "stage_ppo": ("Practising", "练习"),
    "stage_gate": ("Being judged", "评审"),
    "stage_publish": ("Publishing", "发布"),
    "stage_starting": ("Starting", "启动"),
    "stage_demonstrations": ("Reading the demonstrations", "读取示范"),
    "stage_sft": ("Imitating what people wrote", "模仿人们写的回复"),
    # Curves.
    "curves": ("Curves", "曲线"),
    "curves_note": (
        "The last {n} runs that practised, update by update.",
        "最近 {n} 次训练，逐次更新。",
    ),
    "no_curves": ("Curves appear with the first run.", "第一次训练后将显示曲线。"),
    "curve_score": ("Score by the reward model", "奖励模型得分"),
    "curve_judge": ("Score by the judge, which training never sees", "评审模型得分（不参与训练）"),
    "curve_kl": ("KL from the reference, nats a reply", "与参照的 KL（每条回复，nat）"),
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
        "Versions meet when one turn holds replies of both, for example if Regenerate came after a change. "
        "The newest {n} rankings count.",
        "当同一轮对话包含两个版本的回复时（例如换版后重新生成），它们才会被比较。只计最近 {n} 条排序。",
    ),
    "report": ("Report", "报告"),
    "parent_of": ("Made from", "源自"),
    "published_by": ("Published by hand by {name}.", "由 {name} 手动发布。"),
    "serves": ("serves", "使用中"),
    "to_serve": ("chosen", "已选择"),
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
    "chosen": (
        "{name} is chosen; it serves as soon as it is loaded and checked.",
        "已选择 {name}；加载并校验后即开始使用。",
    ),
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
    "minimum_info": (
        f"A slot with fewer is passed over, as with fewer than {FEWEST_RANKINGS} new and old ones in all.",
        f"少于此数时跳过；新旧排序总数少于 {FEWEST_RANKINGS} 条时也跳过。",
    ),
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
    "when": ("When", "时间"),
    "who": ("Who", "人员"),
    "what": ("What", "操作"),
    "detail": ("Detail", "详情"),
    "log": ("Who changed what", "操作记录"),
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
