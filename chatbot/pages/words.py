"""What the pages say, in English and in simplified Chinese.

`word(key, language)` gives one text; `table(language)` gives all of them, for the page's scripts. Texts
with `{name}` in them are filled by whoever shows them. The operator's page keeps its own words beside it.
"""

# ruff: noqa: RUF001 - Chinese is written with full-width punctuation.

from collections.abc import Mapping

LANGUAGES: dict[str, str] = {"en": "English", "zh-CN": "中文"}
"""What a person may choose, each in its own language."""

WORDS: dict[str, tuple[str, str]] = {
    # The frame
    "app": ("Night School", "夜校"),
    "menu": ("Menu", "菜单"),
    "close": ("Close", "关闭"),
    "cancel": ("Cancel", "取消"),
    "save": ("Save", "保存"),
    "new_chat": ("New chat", "新对话"),
    "conversations": ("Conversations", "对话"),
    "search": ("Search chats", "搜索对话"),
    "none_found": ("No chats found", "没有找到对话"),
    "older_chats": ("Older chats are found by searching.", "更早的对话可以通过搜索找到。"),
    "more_found": ("More chats match. Type more to find them.", "还有更多匹配的对话，请输入更多文字。"),
    "actions": ("Actions for “{title}”", "“{title}”的操作"),
    "rename": ("Rename", "重命名"),
    "export": ("Export", "导出"),
    "delete": ("Delete", "删除"),
    "delete_sure": ("Really delete?", "确定删除？"),
    "settings": ("Settings", "设置"),
    "replies_per_turn": ("Replies per turn", "每轮回复数"),
    "language": ("Language", "语言"),
    "theme": ("Theme", "主题"),
    "theme_system": ("System", "跟随系统"),
    "theme_light": ("Light", "浅色"),
    "theme_dark": ("Dark", "深色"),
    "shortcuts": ("Keyboard shortcuts", "键盘快捷键"),
    "no_training": ("Don't train on this chat", "不用此对话训练"),
    "talking_to": ("You are talking to {version}", "您正在与 {version} 对话"),
    "trained_on": (
        "trained on {rankings} rankings, {yours} of them yours",
        "由 {rankings} 次排序训练而成，其中 {yours} 次来自您",
    ),
    "imitates": (
        "fine-tuned on {demonstrations} demonstrations, {yours} of them yours",
        "由 {demonstrations} 条示范微调而成，其中 {yours} 条来自您",
    ),
    "trained_on_none": ("the base model, before any ranking", "基础模型，尚未学习任何排序"),
    "sign_out": ("Sign out", "退出登录"),
    "account": ("Account", "账户"),
    "operate": ("Operate", "运维"),
    # The conversation
    "hello": ("What would you like to talk about?", "想聊点什么？"),
    "hello_more": (
        "You get several replies to each message. Rank them: tonight the assistant learns from it.",
        "每条消息会得到多个回复。请为它们排序，助手会在夜里从中学习。",
    ),
    "try_1": ("Explain why the sky is blue to a ten-year-old.", "向十岁的孩子解释天空为什么是蓝色的。"),
    "try_2": ("Write a polite reply that declines an invitation.", "写一封婉拒邀请的礼貌回信。"),
    "try_3": ("Give me three ideas for a quick supper.", "给我三个快手晚餐的点子。"),
    "you": ("You", "您"),
    "assistant": ("Assistant", "助手"),
    "conversation": ("Conversation so far", "之前的对话"),
    "copy": ("Copy", "复制"),
    "copied": ("Copied", "已复制"),
    "edit": ("Edit", "编辑"),
    "edit_message": ("Edit your message", "编辑您的消息"),
    "send_edited": ("Send as a new branch", "作为新分支发送"),
    "rank_again": ("See the replies", "查看各个回复"),
    "edited_by_you": ("Edited by you", "您编辑的版本"),
    "branch_of": ("Branch {at} of {count}", "分支 {at}，共 {count} 个"),
    "branch_before": ("Previous branch", "上一个分支"),
    "branch_after": ("Next branch", "下一个分支"),
    "to_latest": ("Back to the latest turn", "回到最新一轮"),
    # The composer
    "message": ("Message", "消息"),
    "write_message": ("Write a message", "输入消息"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "too_long": ("{over} characters too many", "超出 {over} 个字符"),
    "waiting_one": ("Yours is the next turn", "下一轮就是您的"),
    "waiting": ("Yours is turn {count} in the queue", "您排在第 {count} 位"),
    "dropped": (
        "The oldest {count} messages no longer fit and were left out.",
        "最早的 {count} 条消息已放不下，未包含在内。",
    ),
    "not_sent": ("Not sent. Your text is still here.", "未发送，您的文字还在这里。"),
    "no_answer": (
        "No answer came. Send it again: it is stored only once.",
        "没有收到回应。请再次发送，不会重复保存。",
    ),
    # The board
    "replies": ("Replies to rank", "待排序的回复"),
    "reply": ("Reply {letter}", "回复 {letter}"),
    "reply_rank": ("Reply {letter}: rank {rank}", "回复 {letter}：第 {rank} 名"),
    "reply_ranks": ("Rank of reply {letter}", "回复 {letter} 的名次"),
    "no_rank": ("No rank", "未排名"),
    "best": ("Best", "最佳"),
    "best_reply": ("Reply {letter} is best", "回复 {letter} 最佳"),
    "state_waiting": ("waiting", "等待中"),
    "state_writing": ("writing", "正在写"),
    "state_length": ("cut at the length limit", "达到长度上限"),
    "state_cancelled": ("stopped", "已停止"),
    "state_interrupted": ("interrupted", "已中断"),
    "state_failed": ("failed", "失败"),
    "state_empty": ("(empty reply)", "（空回复）"),
    "stop_reply": ("Stop reply {letter}", "停止回复 {letter}"),
    "copy_reply": ("Copy reply {letter}", "复制回复 {letter}"),
    "edit_reply": ("Edit reply {letter}", "编辑回复 {letter}"),
    "continue_from": ("Continue from reply {letter}", "从回复 {letter} 继续"),
    "continues": ("Continues from here", "将从这里继续"),
    "your_version": ("Your version of reply {letter}", "您改写的回复 {letter}"),
    "save_demonstration": ("Save as demonstration", "保存为示范"),
    "order": ("Order", "顺序"),
    "order_empty": ("Which do you like best? Rank at least two.", "您最喜欢哪个？至少为两个回复排名。"),
    "order_one": ("{letter} first. Rank one more, or press Best.", "{letter} 排第一。再排一个，或点“最佳”。"),
    "order_still": (
        "Saved, and it still counts: {saved}. To take it back, press Undo.",
        "已保存的排序仍然有效：{saved}。要收回它，请点“撤销”。",
    ),
    "order_full": ("{order}", "{order}"),
    "order_best": ("{letter} is best", "{letter} 最佳"),
    "order_all_bad": ("None of them is good", "都不好"),
    "order_bad": ("Not a good reply", "这个回复不好"),
    "order_skip": ("Skipped", "已跳过"),
    "all_bad": ("All bad", "都不好"),
    "bad_reply": ("Bad reply", "回复不好"),
    "all_tied": ("All tied", "都一样"),
    "clear": ("Start over", "重新排序"),
    "skip": ("Skip", "跳过"),
    "regenerate": ("Regenerate", "重新生成"),
    "no_more_replies": (
        "This message has nine replies, as many as can be compared - rank them, or edit the message.",
        "这条消息已有九个回复，不能再多了。请为它们排序，或编辑这条消息。",
    ),
    "undo": ("Undo", "撤销"),
    "save_ranking": ("Save ranking", "保存排序"),
    "save_changes": ("Save changes", "保存修改"),
    "saved": ("Saved", "已保存"),
    "withdrawn": ("Ranking withdrawn", "排序已撤销"),
    "compare": ("Compare", "对比"),
    "compare_with": ("with", "与"),
    "compare_left": ("First reply", "第一个回复"),
    "compare_right": ("Second reply", "第二个回复"),
    "reasons": ("Why?", "为什么？"),
    "comment": ("Comment", "备注"),
    "comment_hint": ("Anything else? (optional)", "其他理由（可选）"),
    "reason_correct": ("Correct", "正确"),
    "reason_helpful": ("Helpful", "有帮助"),
    "reason_clear": ("Clear", "清楚"),
    "reason_short": ("To the point", "简洁"),
    "reason_detailed": ("Detailed", "详细"),
    "reason_tone": ("Good tone", "语气好"),
    "reason_followed": ("Did as asked", "按要求做了"),
    "reason_wrong": ("Wrong", "错误"),
    "reason_unhelpful": ("Unhelpful", "没有帮助"),
    "reason_unclear": ("Unclear", "不清楚"),
    "reason_too_long": ("Too long", "太长"),
    "reason_off_topic": ("Off topic", "跑题"),
    "reason_unsafe": ("Unsafe", "不安全"),
    "keys": ("Keys", "快捷键"),
    "choose_first": ("Choose a reply first: press its letter.", "请先选择一个回复：按它的字母。"),
    "keys_card": ("choose a reply", "选择回复"),
    "keys_rank": ("rank the chosen reply", "为所选回复排名"),
    "keys_clear": ("clear its rank", "清除其名次"),
    "keys_best": ("the chosen reply is best", "所选回复最佳"),
    "keys_bad": ("all bad", "都不好"),
    "keys_skip": ("skip, while nothing is marked", "跳过（尚未标记时）"),
    "keys_save": ("save", "保存"),
    "keys_stop": ("stop", "停止"),
    "keys_write": ("write", "输入消息"),
    "cut_off": (
        "The server was stopped before the replies were complete. Press Regenerate for new ones, or edit the "
        "message and send it as a branch.",
        "服务器在回复完成之前停止了。请点“重新生成”，或编辑这条消息，作为新分支发送。",
    ),
    "no_replies": (
        "No reply was written to this message. Press Regenerate, or edit it and send it as a branch.",
        "这条消息没有得到回复。请点“重新生成”，或编辑这条消息，作为新分支发送。",
    ),
    # What the server says
    "sign_in": ("Sign in", "登录"),
    "signed_out": (
        "You are signed out - reload the page to sign in again.",
        "您已退出登录，请刷新页面重新登录。",
    ),
    "not_yours": (
        "This page belongs to somebody else - reload it.",
        "此页面属于他人，请刷新。",
    ),
    "not_followed": (
        "You follow replies on too many pages - reload this one to go on here.",
        "您在过多页面上关注回复，请刷新此页面以继续。",
    ),
    "too_much": (
        "That was too much at once - wait a moment, then try again.",
        "一次请求太多，请稍候再试。",
    ),
}


def word(key: str, language: str = "en", **values: object) -> str:
    """The text for `key`, with `{name}` filled from `values`. An unknown language reads as English."""
    english, chinese = WORDS[key]
    text = chinese if language == "zh-CN" else english
    return text.format(**values) if values else text


def table(language: str) -> dict[str, str]:
    """Every text of a language by its key."""
    return {key: word(key, language) for key in WORDS}


def language_of(cookies: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """The language of a request: the one the person chose (a cookie), else the browser's, else English."""
    chosen = cookies.get("night_language", "")
    if chosen in LANGUAGES:
        return chosen
    return "zh-CN" if headers.get("accept-language", "").lower().startswith("zh") else "en"
